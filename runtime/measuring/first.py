"""The first start on an ARM processor: whether weights that are laid out anew answer faster.

llama.cpp's copies of that kind read prompts 1.9 to 3.7 times as fast on ARM cores with dot products
(its issues 18096, 19356 and 19360), and all that tel-edge computes is prompts; on x86 they gain
little and crash in some builds, so that they are off by default. Here both ways are measured once,
each in a process of its own, with a few questions; `tel-bench --tune` looks for more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

from tel_edge.runtime.answerer import selected
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device import facts, needs, power, profile
from tel_edge.runtime.device.profile import ProfileEntry
from tel_edge.runtime.device.system import System
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.measuring import probe, tune
from tel_edge.runtime.measuring.probe import Subject
from tel_edge.runtime.questions.categories import CATEGORIES

# Questions, and how much faster they have to be in the one run of each way.
QUESTIONS, GAIN = 4, 1.15
# What moves a label's log-probability further than this, in nats, computes something else.
DRIFT = 1.0
# Seconds for each way; what takes longer is left alone.
LIMIT = 300.0
Say = Callable[[str], None]


def start(
    folder: Path,
    quant: str | None,
    format: str | None,
    settings: EngineSettings,
    say: Say,
    system: System | None = None,
    measure: Callable[[Subject], tune.Measure] | None = None,
) -> None:
    """Measure and keep what is faster, unless this is no ARM processor or its profile has it.

    Neither is anything measured where the profile cannot be kept, or layers go to a GPU. `measure`
    gives what answers with settings.
    """
    system = system or System()
    if not system.arm or settings.gpu_layers:
        return
    made = bundle.read(folder)
    file, _ = selected(folder, made, quant, format, lambda _: None)
    name = made.backbone.name
    installed = FORMATS[file.format].installed()
    if file.format != "gguf" or not installed or profile.tuned_here(name, file.quant, "gguf"):
        return
    try:
        profile.check_writable(profile.location())
    except InputError as error:
        say(f"warning: nothing is measured on this first start: {error}")
        return
    free = facts.memory(system).free
    copying = needs.need(folder, made, file, replace(settings, extra_buffers=True))
    if free is not None and copying.own > free:
        # The copy alone would take what others have.
        return
    bundle.verify(folder, made, [file])
    say("first start on this ARM processor: trying repacked weights (--no-tune leaves it out)")
    category = next(iter(CATEGORIES.values()))
    what = Subject(folder, made, file, None, probe.questions(category, QUESTIONS))
    run = measure(what) if measure else tune.InChild(what, bundle.native, LIMIT)
    under = power.now()
    batch = settings.batch or FORMATS[file.format].batch
    safe = replace(settings, batch=batch)
    plain, copied = run(safe), run(replace(safe, extra_buffers=True))
    if plain.error:
        # Whoever opens the engine is told.
        return
    # One that failed has a rate of 0.
    faster = copied.questions_per_second > GAIN * plain.questions_per_second
    taken = faster and tune.drift(plain, copied) <= DRIFT
    best = copied if taken else plain
    entry = ProfileEntry(
        threads=None,
        batch=batch,
        extra_buffers=taken,
        engine=profile.engine(file.format),
        tokens_per_second=round(best.tokens_per_second, 1),
        date=date.today().isoformat(),
    )
    key = profile.key(name, file.quant, under)
    path = profile.kept(lambda there: profile.with_entry(there, key, entry), say)
    found = copied.error or f"{copied.questions_per_second:.2f} questions/s"
    say(
        f"repacked weights: {found}, plain ones {plain.questions_per_second:.2f}; "
        f"{'repacked' if taken else 'plain'} ones are kept in {path} (more: tel-bench --tune)"
    )
