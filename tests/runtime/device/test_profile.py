"""The device profile: what it is bound to, and what of it reaches the engine."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import fake_machines as fakes
import pytest

from tel_edge.runtime.bundles import formats
from tel_edge.runtime.device import power, profile
from tel_edge.runtime.device.power import Power
from tel_edge.runtime.device.profile import Profile, ProfileEntry
from tel_edge.runtime.engines.engine import KV_TYPES, EngineSettings
from tel_edge.runtime.engines.with_llama import GGML_TYPES
from tel_edge.runtime.errors import InputError

GGUF, ONNX = profile.engine("gguf"), profile.engine("onnx")
ENTRY = ProfileEntry(
    threads=1,
    batch=256,
    flash=True,
    kv="Q8_0",
    extra_buffers=True,
    gpu_layers=0,
    engine=GGUF,
    tokens_per_second=812.5,
    date="2026-01-31",
)
ONNX_ENTRY = ProfileEntry(
    threads=2, batch=128, engine=ONNX, tokens_per_second=700.0, date="2026-01-31"
)
X86 = "model name\t: Fast 9\nflags\t\t: fpu avx2\n\nmodel name\t: Fast 9\nflags\t\t: fpu avx2\n"
ARM = "processor : 0\nFeatures : fp asimd\nCPU part : 0xd0b\n\nprocessor : 1\nCPU part : 0xd05\n"
RISCV = "hart : 0\nisa : rv64imafdc\nuarch : sifive,u74-mc\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "somewhere" / "profile.json"


def written(path: Path, **changed: Any) -> None:
    """Write a profile of this machine for tel-nano in Q4_K_M."""
    made = profile.with_entry(None, "tel-nano/Q4_K_M", ENTRY)
    profile.write(replace(made, **changed), path)


def test_what_is_written_is_read(path: Path) -> None:
    written(path)
    made = profile.read(path)
    assert made == Profile(profile.machine(), {"tel-nano/Q4_K_M": ENTRY})
    assert [file.name for file in path.parent.iterdir()] == ["profile.json"]


def test_no_profile_changes_and_says_nothing(path: Path) -> None:
    base = EngineSettings(threads=3)
    assert profile.settings(base, "tel-nano", "Q4_K_M", "gguf", path) == (base, None)
    written(path)
    assert profile.settings(base, "tel-nano", "Q8_0", "gguf", path) == (base, None)


def test_the_entry_is_put_in_and_told(path: Path) -> None:
    written(path)
    found, note = profile.settings(EngineSettings(context=2048), "tel-nano", "Q4_K_M", "gguf", path)
    assert found == EngineSettings(
        threads=1, context=2048, batch=256, flash=True, kv="Q8_0", extra_buffers=True, gpu_layers=0
    )
    assert note == (
        f"settings of {path}: threads 1, batch 256, flash on, kv Q8_0, extra_buffers on, "
        "gpu_layers 0"
    )


# What was asked for, the entry, what comes out.
MERGED: tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    ({"threads": 4}, {}, {"threads": 4, "batch": 256}),
    ({"batch": 64}, {}, {"threads": 1, "batch": 64}),
    ({"gpu_layers": 7}, {"gpu_layers": -1}, {"gpu_layers": 7}),
    ({}, {"gpu_layers": -1}, {"gpu_layers": -1}),
    # A quantized cache and no flash attention go together in no engine.
    ({"flash": False}, {}, {"flash": False, "kv": "F16"}),
    ({"kv": "Q8_0"}, {"flash": False, "kv": "F16"}, {"flash": None, "kv": "Q8_0"}),
    ({"context": 512}, {"batch": 1024}, {"batch": 512}),
    ({"context": 512}, {"batch": 128}, {"batch": 128}),
    ({"exact": True, "max_adapters": 2}, {}, {"exact": True, "max_adapters": 2}),
    ({"providers": ("cuda",)}, {}, {"providers": ("cuda",)}),
)


@pytest.mark.parametrize(("asked", "entry", "wanted"), MERGED)
def test_what_was_asked_for_wins(
    asked: dict[str, Any], entry: dict[str, Any], wanted: dict[str, Any], path: Path
) -> None:
    written(path, entries={"tel-nano/Q4_K_M": replace(ENTRY, **entry)})
    found, _ = profile.settings(EngineSettings(**asked), "tel-nano", "Q4_K_M", "gguf", path)
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_a_profile_from_elsewhere_is_not_used(path: Path) -> None:
    written(path, machine="something else")
    found, note = profile.settings(EngineSettings(), "tel-nano", "Q4_K_M", "gguf", path)
    assert found == EngineSettings()
    assert note is not None
    assert note.startswith(f"warning: {path} is not used, made on another machine (something else")
    assert note.endswith("run: tel-bench --tune")


def test_an_entry_of_another_engine_is_not_used_and_the_others_are(path: Path) -> None:
    old = replace(ONNX_ENTRY, engine="onnxruntime 1.0, build 0")
    entries = {"tel-nano/Q4_K_M": ENTRY, "tel-nano/int4": ONNX_ENTRY, "tel-nano/fp32": old}
    written(path, entries=entries)
    found, note = profile.settings(EngineSettings(), "tel-nano", "fp32", "onnx", path)
    assert found == EngineSettings()
    assert note == (
        f"warning: {path}: tel-nano/fp32 is not used, made on another engine "
        f"(onnxruntime 1.0, build 0; this is {ONNX}); run: tel-bench --tune --quant fp32"
    )
    for format, quant, batch in (("gguf", "Q4_K_M", 256), ("onnx", "int4", 128)):
        found, note = profile.settings(EngineSettings(), "tel-nano", quant, format, path)
        assert found.batch == batch
        assert note is not None
        assert note.startswith(f"settings of {path}: ")


def test_an_onnx_entry_gives_and_names_what_its_engine_knows(path: Path) -> None:
    # What else stands in an entry is none of this engine's business.
    written(path, entries={"tel-nano/int4": replace(ONNX_ENTRY, flash=True, gpu_layers=-1)})
    base = EngineSettings(providers=("openvino",))
    found, note = profile.settings(base, "tel-nano", "int4", "onnx", path)
    assert found == replace(base, threads=2, batch=128)
    assert note == f"settings of {path}: threads 2, batch 128"


def test_each_format_has_its_engine() -> None:
    for format, engine in (("gguf", GGUF), ("onnx", ONNX)):
        assert engine == "unknown" or engine.startswith(formats.FORMATS[format].version())
    assert set(GGML_TYPES) == set(KV_TYPES)


def test_entries_are_kept_as_long_as_they_hold() -> None:
    first = profile.with_entry(None, "a/F16", ENTRY)
    both = profile.with_entry(first, "b/F16", replace(ENTRY, threads=None))
    assert set(both.entries) == {"a/F16", "b/F16"}
    assert set(profile.with_entry(both, "a/F16", replace(ENTRY, batch=64)).entries) == {
        "a/F16",
        "b/F16",
    }
    older = replace(both, entries={"a/F16": replace(ENTRY, engine="an older one")})
    assert set(profile.with_entry(older, "b/F16", ENTRY).entries) == {"a/F16", "b/F16"}
    moved = replace(both, machine="something else")
    assert set(profile.with_entry(moved, "c/F16", ENTRY).entries) == {"c/F16"}


def damaged(**changed: Any) -> str:
    """Return the text of a profile with an entry whose fields are `changed`, None leaving out."""
    values = {name: v for name, v in (asdict(ENTRY) | changed).items() if v != "left out"}
    made = {"schema_version": 2, "machine": "m", "entries": {"a/F16": values}}
    return json.dumps(made)


ENTRY_AT = "entries['a/F16']: field "
DAMAGED = (
    ('{"schema_version": 2, "mach', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[]", "not a JSON object"),
    ("{}", "schema_version None, this version reads 2"),
    (
        '{"schema_version": 1, "machine": "", "engine": "", "entries": {}}',
        "schema_version 1, this version reads 2",
    ),
    ('{"schema_version": 3}', "schema_version 3"),
    ('{"schema_version": 2, "machine": 7}', "field 'machine' is missing or not str"),
    (
        '{"schema_version": 2, "machine": "", "entries": []}',
        "field 'entries' is missing or not dict",
    ),
    (
        '{"schema_version": 2, "machine": "", "entries": {"x": 1}}',
        "entries['x'] is not a JSON object",
    ),
    (damaged(threads=0), ENTRY_AT + "'threads' is missing or not null or a whole number above 0"),
    (damaged(threads=True), ENTRY_AT + "'threads'"),
    (damaged(threads="left out"), ENTRY_AT + "'threads'"),
    (damaged(batch=2.5), ENTRY_AT + "'batch'"),
    (damaged(batch=None), ENTRY_AT + "'batch'"),
    (damaged(flash=1), ENTRY_AT + "'flash' is missing or not true, false or null"),
    (damaged(kv="Q9"), ENTRY_AT + "'kv' is missing or not of F32 F16 Q8_0"),
    (damaged(kv=["F16"]), ENTRY_AT + "'kv'"),
    (damaged(flash=False), ENTRY_AT + "'kv' is Q8_0, which needs 'flash'"),
    (damaged(extra_buffers=0), ENTRY_AT + "'extra_buffers'"),
    (damaged(gpu_layers=-2), ENTRY_AT + "'gpu_layers'"),
    (damaged(engine=None), ENTRY_AT + "'engine' is missing or not a string"),
    (damaged(engine="left out"), ENTRY_AT + "'engine'"),
    (damaged(tokens_per_second=float("nan")), ENTRY_AT + "'tokens_per_second'"),
    (damaged(date=20260131), ENTRY_AT + "'date'"),
)


@pytest.mark.parametrize(("text", "said"), DAMAGED)
def test_a_damaged_profile_is_refused_by_field(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        profile.settings(EngineSettings(), "a", "F16", "gguf", path)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{path}: ")
    assert said in first
    assert second == "remove it, or write it anew: tel-bench --tune"


def test_bytes_that_are_no_text_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="not JSON"):
        profile.read(path)


def test_every_field_has_its_rule_and_belongs_to_the_engine() -> None:
    assert list(profile.RULES) == [part.name for part in fields(ProfileEntry)]
    tuned = [part.name for part in fields(ProfileEntry)][:-3]
    assert set(tuned) == {name for row in formats.FORMATS.values() for name in row.tuned}
    default = EngineSettings()
    for name in {part.name for part in fields(EngineSettings)} & set(tuned):
        values = asdict(ONNX_ENTRY)
        assert name in formats.FORMATS["onnx"].tuned or values[name] == getattr(default, name)
    assert set(tuned) <= {part.name for part in fields(EngineSettings)}
    assert "providers" not in tuned


LOCATIONS = (
    ({"TEL_PROFILE": "/here.json", "XDG_CONFIG_HOME": "/config"}, "/here.json"),
    ({"XDG_CONFIG_HOME": "/config"}, "/config/tel-edge/profile.json"),
    ({"XDG_CONFIG_HOME": "relative", "HOME": "/me"}, "/me/.config/tel-edge/profile.json"),
    ({"TEL_PROFILE": "", "HOME": "/me"}, "/me/.config/tel-edge/profile.json"),
)


@pytest.mark.parametrize(("given", "wanted"), LOCATIONS)
def test_location(given: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEL_PROFILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert profile.location() == Path(wanted)


def test_only_a_plain_file_is_written_over(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="no plain file, so no profile; set TEL_PROFILE"):
            profile.write(Profile("m"), path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="set TEL_PROFILE to another path"):
        profile.check_writable(tmp_path / "file" / "profile.json")


def test_a_profile_that_is_no_file_is_none() -> None:
    assert profile.read(Path("/dev/null")) is None


def of(tmp_path: Path, text: str, **cores: str) -> str:
    files = {f"sys/devices/system/cpu/{name}": text for name, text in cores.items()}
    fakes.put(tmp_path, {"proc/cpuinfo": text, **files})
    return profile.machine(fakes.bare(tmp_path))


def test_the_machine_is_its_processor_cores_and_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "cores", lambda: 2)
    x86 = of(tmp_path, X86)
    assert x86.startswith("Fast 9, 2 cores, features ")
    assert of(tmp_path, X86.replace("fpu avx2", "avx2 fpu")) == x86
    assert of(tmp_path, X86.replace("avx2", "avx512f")) != x86
    assert of(tmp_path, X86 + "cpu MHz\t\t: 2596.136\n") == x86
    assert of(tmp_path, ARM).startswith("0xd05, 0xd0b, 2 cores, features ")
    assert of(tmp_path, RISCV).startswith("sifive,u74-mc, 2 cores, features ")
    monkeypatch.setattr(profile, "cores", lambda: 3)
    assert of(tmp_path, X86) == x86.replace("2 cores", "3 cores")
    assert profile.machine(fakes.bare(tmp_path / "nothing")).endswith(", 3 cores")
    assert profile.machine() == profile.machine()


def test_cores_that_a_power_mode_turned_off_are_the_machines_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "cores", lambda: 4)
    assert of(tmp_path, ARM, online="0-3", present="0-5").startswith("0xd05, 0xd0b, 6 cores")
    monkeypatch.setattr(profile, "cores", lambda: 6)
    assert of(tmp_path, ARM, online="0-5", present="0-5").startswith("0xd05, 0xd0b, 6 cores")
    # One that may use two of them has two.
    monkeypatch.setattr(profile, "cores", lambda: 2)
    assert of(tmp_path, ARM, online="0-3", present="0-5").startswith("0xd05, 0xd0b, 2 cores")


QUIET, FULL = Power("15W", "schedutil", 4), Power("MAXN", "schedutil", 6)


@pytest.fixture
def under(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the device's power."""
    return lambda of: monkeypatch.setattr(power, "now", lambda _=None: of)


def asked(path: Path) -> tuple[EngineSettings, str | None]:
    return profile.settings(EngineSettings(), "tel-nano", "Q4_K_M", "gguf", path)


def test_each_power_mode_has_its_entry(path: Path, under: Any) -> None:
    made = None
    for of, threads in ((QUIET, 4), (FULL, 6)):
        name = profile.key("tel-nano", "Q4_K_M", of)
        made = profile.with_entry(made, name, replace(ENTRY, threads=threads))
    assert made
    assert list(made.entries) == [
        "tel-nano/Q4_K_M at 15W, schedutil, 4 cores online",
        "tel-nano/Q4_K_M at MAXN, schedutil, 6 cores online",
    ]
    profile.write(made, path)
    for of, threads in ((QUIET, 4), (FULL, 6)):
        under(of)
        found, note = asked(path)
        assert found.threads == threads
        assert note
        assert note.startswith("settings of ")
    under(replace(FULL, governor="performance"))
    found, note = asked(path)
    assert found == EngineSettings()
    assert note == (
        f"warning: {path}: tel-nano/Q4_K_M is not used, tuned under another power (15W, schedutil, "
        "4 cores online; this is MAXN, performance, 6 cores online); run: tel-bench --tune --quant "
        "Q4_K_M"
    )


def test_an_entry_from_before_power_was_noted(path: Path, under: Any) -> None:
    written(path)
    # Where nothing, or only the governor, can be read it is used as before.
    for of in (Power(), Power(None, "schedutil", 4)):
        under(of)
        assert asked(path)[0].threads == 1
    # On a device with modes it may be of any of them.
    under(QUIET)
    found, note = asked(path)
    assert found == EngineSettings()
    assert note
    assert "is not used, tuned under a power mode that nobody noted (this is 15W, sched" in note
    name = profile.key("tel-nano", "Q4_K_M", QUIET)
    made = profile.with_entry(profile.read(path), name, replace(ENTRY, threads=3))
    profile.write(made, path)
    assert asked(path)[0].threads == 3
    under(Power())
    assert asked(path)[0].threads == 1, "the old one is kept"


def test_a_profile_with_power_modes_is_read_where_they_cannot_be(path: Path, under: Any) -> None:
    made = profile.with_entry(None, profile.key("tel-nano", "Q4_K_M", QUIET), ENTRY)
    profile.write(made, path)
    under(Power())
    _, note = asked(path)
    assert note
    assert "tuned under another power (15W, schedutil, 4 cores online; this is unknown)" in note


def test_what_is_fastest_is_chosen_for_each_power_mode(path: Path, under: Any) -> None:
    made = None
    for of, quant in ((QUIET, "int4"), (FULL, "Q4_K_M"), (None, "Q8_0")):
        format = "onnx" if quant == "int4" else "gguf"
        found = profile.Choice(format, quant, {quant: 1.0}, "2026-01-31")
        made = profile.with_choice(made, profile.chosen_key("tel-nano", of), found)
    assert made
    profile.write(made, path)
    for of, quant in ((QUIET, "int4"), (FULL, "Q4_K_M"), (Power(), "Q8_0")):
        under(of)
        chosen = profile.choice("tel-nano", path)
        assert chosen
        assert chosen.quant == quant
    under(Power("30W"))
    assert profile.choice("tel-nano", path) is None
    assert profile.choice("other", path) is None


def test_nobody_is_asked_where_no_entry_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path)
    monkeypatch.setattr(power, "now", lambda _=None: pytest.fail("asked"))
    other = profile.settings(EngineSettings(), "tel-nano", "Q8_0", "gguf", path)
    assert other == (EngineSettings(), None)
