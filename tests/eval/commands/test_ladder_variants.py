"""`tel-eval --ladder`: all variants of a bundle, and what an answer costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_engine as fake
import for_ladder_variants
import pytest
from for_ladder_variants import Command, folder, out, parts, summary

from tel_edge.eval.commands import evaluate
from tel_edge.eval.scoring import resumed
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.device.energy import Energy, Meter
from tel_edge.runtime.engines.llama_native import kv_bytes

installed = for_ladder_variants.installed
home = for_ladder_variants.home
tel_eval = for_ladder_variants.tel_eval


def names(said: str) -> list[str]:
    return [line.split()[1] for line in said.splitlines()[:-1]]


def merged(home: Path, quant: str, category: str = "oranbench", **known: Any) -> None:
    """Add a merged model to the bundle."""
    path = folder(home) / f"nano-{category}-{quant}.gguf"
    path.write_bytes(fake.gguf(tel_edge__backbone__weights=fake.WEIGHTS, category=category))
    known = {"backbone": fake.WEIGHTS, "split": parts(home).digest, **known}
    add(home, path, kind="merged", format="gguf", quant=quant, category=category, **known)


def adapter(home: Path, quant: str, size: int = 0, **known: Any) -> None:
    """Add an adapter of another type to the bundle, larger than the usual one by `size`."""
    path = folder(home) / f"nano-oranbench-{quant}-LoRA.gguf"
    path.write_bytes(fake.gguf(general__type="adapter", general__name="x" * (200 + size)))
    known = {"backbone": fake.WEIGHTS, "split": parts(home).digest, **known}
    add(home, path, kind="adapter", format="gguf", quant=quant, category="oranbench", **known)


def add(home: Path, path: Path, **known: Any) -> None:
    made = bundle.read(folder(home))
    manifest.write(made.with_file(manifest.describe(folder(home), path, **known)), folder(home))


def changed(home: Path, quant: str, **changes: Any) -> None:
    """Change what the manifest says of a backbone."""
    made = bundle.read(folder(home))
    (file,) = [f for f in made.files if (f.kind, f.quant) == ("backbone", quant)]
    manifest.write(made.with_file(replace(file, **changes)), folder(home))


def test_adapters_of_another_type_alone_say_so(tel_eval: Command, home: Path) -> None:
    """Results of another bundle, with the usual adapters, have the plain name."""
    adapter(home, "Q8_0")
    made = manifest.read(folder(home))
    left = tuple(f for f in made.files if (f.kind, f.quant) != ("adapter", "F16"))
    manifest.write(replace(made, files=left), folder(home))
    wanted = ["base-F16", "lora-F16+Q8_0", "lora-Q4_K_M+Q8_0"]
    assert names(tel_eval(opener=fake.FakeOpener())[1]) == wanted


def test_the_ladder_is_every_model_at_every_type(tel_eval: Command, home: Path) -> None:
    fake.onnx(folder(home), split=parts(home).digest)
    adapter(home, "F32", size=500)
    adapter(home, "Q8_0")
    merged(home, "Q4_K_M")
    merged(home, "Q8_0")
    plain = "base-F16 lora-F16 lora-Q4_K_M lora-fp32 lora-int4"
    opener = fake.FakeOpener()
    assert names(tel_eval(opener=opener)[1]) == plain.split()
    # Of several adapters the usual one, though another is larger.
    assert summary(home, "lora-F16").variant.adapter_quant == "F16"
    code, said, _ = tel_eval("--ladder", opener=opener)
    assert code == 0
    types = "+F32 +Q8_0"
    assert names(said) == [
        *("base-F16", "lora-F16", *(f"lora-F16{one}" for one in types.split())),
        *("base-Q4_K_M", "lora-Q4_K_M", *(f"lora-Q4_K_M{one}" for one in types.split())),
        *("merged-Q4_K_M", "merged-Q8_0"),
        *("base-fp32", "lora-fp32", "base-int4", "lora-int4"),
    ]
    assert said.count("(scored before)") == len(plain.split())
    made = summary(home, "merged-Q8_0").variant
    path = folder(home) / "nano-oranbench-Q8_0.gguf"
    assert (made.merged, made.adapter, made.adapter_quant) == (True, True, None)
    assert (made.backbone_bytes, made.adapter_bytes) == (path.stat().st_size, 0)
    assert (path, []) in opener.opened
    other = summary(home, "lora-Q4_K_M+Q8_0").variant
    assert (other.adapter_quant, other.quant, other.merged) == ("Q8_0", "Q4_K_M", False)
    assert other.adapter_bytes == (folder(home) / "nano-oranbench-Q8_0-LoRA.gguf").stat().st_size
    chosen = tel_eval("--ladder", "--quant", "Q8_0", "--protocol", "generate")[1]
    assert names(chosen) == ["merged-Q8_0-generate"]


def test_the_bare_backbone_can_be_left_out(tel_eval: Command, home: Path) -> None:
    merged(home, "Q8_0")
    assert names(tel_eval("--no-bare")[1]) == ["lora-F16", "lora-Q4_K_M"]
    said = tel_eval("--no-bare", "--ladder")[1]
    assert names(said) == ["lora-F16", "lora-Q4_K_M", "merged-Q8_0"]
    fake.bundle(folder(home), adapters=())
    code, _, err = tel_eval("--no-bare", "--category", "oranbench")
    assert code == 2
    assert "--no-bare" in err


def test_a_merged_model_answers_its_own_category_alone(tel_eval: Command, home: Path) -> None:
    fake.dataset(home / "data", "teleqna", fake.rows(30))
    merged(home, "F16", "teleqna", split=parts(home, "teleqna").digest)
    assert names(tel_eval("--ladder", "--category", "oranbench")[1]) == [
        *("base-F16", "lora-F16", "base-Q4_K_M", "lora-Q4_K_M"),
    ]
    # It makes its category one of all, and needs no adapter beside it.
    said = tel_eval("--ladder")[1]
    lines = [line.split()[:2] for line in said.splitlines()[4:-1]]
    assert lines == [["teleqna", name] for name in ("base-F16", "merged-F16", "base-Q4_K_M")]
    assert tel_eval("--category", "teleqna")[0] == 2


def test_merged_models_need_no_backbone_in_the_bundle(tel_eval: Command, home: Path) -> None:
    (folder(home) / "manifest.json").unlink()
    fake.bundle(folder(home), adapters=(), quants=())
    merged(home, "F16")
    assert names(tel_eval("--ladder")[1]) == ["merged-F16"]
    code, _, err = tel_eval()
    assert code == 2
    assert "no GGUF backbone (there: none)" in err


# What the manifest says wrongly of a merged model, and what is said of it.
WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"split": "0" * 64}, "nano-oranbench-F16.gguf: trained on another split than data"),
    ({"backbone": "0" * 64}, "nano-oranbench-F16.gguf: made for another backbone than tel-nano"),
    ({"backbone": None}, "nano-oranbench-F16.gguf: made for another backbone than tel-nano"),
)


@pytest.mark.parametrize(("known", "said"), WRONG)
def test_a_merged_model_is_bound_to_backbone_and_split(
    known: dict[str, Any], said: str, tel_eval: Command, home: Path
) -> None:
    merged(home, "F16", **known)
    opener = fake.FakeOpener()
    code, _, err = tel_eval("--ladder", opener=opener)
    assert (code, opener.opened) == (2, [])
    assert len(err.splitlines()) <= 3
    assert said in err
    # Where it is not scored it is nobody's concern.
    assert tel_eval()[0] == 0


def test_a_changed_merged_model_is_refused_and_another_one_is_another_run(
    tel_eval: Command, home: Path
) -> None:
    merged(home, "F16")
    assert tel_eval("--ladder")[0] == 0
    path = folder(home) / "nano-oranbench-F16.gguf"
    path.write_bytes(path.read_bytes() + b"?")
    code, _, err = tel_eval("--ladder", "-k", "5")
    assert code == 2
    assert f"{path}: " in err
    known = {"category": "oranbench", "backbone": fake.WEIGHTS, "split": parts(home).digest}
    add(home, path, kind="merged", format="gguf", quant="F16", **known)
    said = tel_eval("--ladder")[1].splitlines()
    fresh = [line.split()[1] for line in said[:-1] if "(scored before)" not in line]
    assert fresh == ["merged-F16"]


# What a backbone's values depend on, and the end of its variants' names.
OPTIONS = (
    (None, ""),
    ("from-onnx 0123456789abcdef", ""),
    ("imatrix pooled 0123456789abcdef", "-imatrix"),
    ("tensor-type token_embd=Q8_0", "-mixed"),
    ("tensor-type imatrix=Q8_0; tensor-type x=F16", "-mixed"),
    ("tensor-type x=Q8_0; imatrix 0123456789abcdef", "-imatrix-mixed"),
)


@pytest.mark.parametrize(("options", "end"), OPTIONS)
def test_names_tell_the_ways_of_quantization(
    options: str | None, end: str, tel_eval: Command, home: Path
) -> None:
    adapter(home, "Q8_0")
    changed(home, "Q4_K_M", options=options)
    said = tel_eval("--ladder", "--quant", "Q4_K_M", "--protocol", "generate")[1]
    name = f"Q4_K_M{end}"
    wanted = (f"base-{name}", f"lora-{name}", f"lora-{name}+Q8_0")
    assert names(said) == [f"{one}-generate" for one in wanted]
    assert summary(home, f"lora-{name}-generate").variant.options == options


class Knowing(fake.FakeEngine):
    """An engine that tells what it keeps of a token."""

    kv_bytes_per_token = 32 * 1024


class Counting(Meter):
    """A meter that reads 10 J a second time, whatever was read before."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0

    def begin(self) -> None:
        self.readings = 0

    def read(self) -> Energy:
        self.readings += 1
        return Energy(cpu=9.0, gpu=3.0) if self.readings % 2 == 0 else Energy(cpu=1000.0)


def test_what_an_answer_costs_is_in_the_summary(
    tel_eval: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Meter", Counting)
    monkeypatch.setattr(resumed, "power_mode", lambda: "MODE_15W")
    opener = fake.FakeOpener(engine=Knowing, context=500)
    assert tel_eval(opener=opener)[0] == 0
    for variant in ("base-F16", "lora-Q4_K_M"):
        made = summary(home, variant)
        assert made.joules_per_question == 12.0 / 6
        assert (made.kv_bytes_per_token, made.context, made.power_mode) == (32768, 500, "MODE_15W")
        assert made.first_answer_ms is not None
        assert 0 < made.first_answer_ms < 60_000
    # Of a run that goes on, the energy is that of what it answered.
    path = out(home, "lora-F16")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    path.with_suffix(".json").unlink()
    assert tel_eval()[0] == 0
    assert summary(home, "lora-F16").joules_per_question == 12.0 / 2
    # Nothing was left to ask, so nothing is known of what it costs.
    path.with_suffix(".json").unlink()
    assert tel_eval()[0] == 0
    made = summary(home, "lora-F16")
    assert (made.joules_per_question, made.first_answer_ms) == (None, None)


def test_without_counters_costs_are_unknown(
    tel_eval: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tel_edge.runtime.device.energy._monitor", lambda: None)
    nothing = SimpleNamespace(read=dict)
    monkeypatch.setattr("tel_edge.runtime.device.energy._counters", lambda: nothing)
    monkeypatch.setattr(resumed, "power_mode", lambda: None)
    assert tel_eval()[0] == 0
    made = summary(home, "base-F16")
    assert (made.joules_per_question, made.power_mode, made.kv_bytes_per_token) == (None,) * 3


# Layers, heads of keys and values, width of a head, KiB of one token at F16.
SHAPES = {
    "Llama-3.2-1B": (16, 8, 64, 32),
    "Qwen3-0.6B": (28, 8, 128, 112),
    "EXAONE-4.0-1.2B": (30, 8, 64, 60),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_token_of_the_cache_is_as_large_as_the_shapes_say(name: str) -> None:
    layers, heads, width, wanted = SHAPES[name]
    assert kv_bytes(layers, heads, width, width, "F16") == wanted * 1024
    assert kv_bytes(layers, heads, width, width, "F32") == 2 * wanted * 1024
    # 32 values and a scale of two bytes.
    assert kv_bytes(layers, heads, width, width, "Q8_0") == wanted * 1024 * 34 // 64
