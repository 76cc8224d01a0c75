"""What a bundle's file needs, beside what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_engine as fake
import fake_machines as fakes
import pytest

from tel_edge.runtime.device import needs
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.files import onnx_header
from tel_edge.runtime.files.onnx_header import OnnxHeader

SAFE = EngineSettings()


def test_a_1b_model_is_near_what_was_measured(tmp_path: Path) -> None:
    """docs/performance.md: 369 MB of memory, 824 MB of pages, with an adapter of 45.1 MB."""
    made = fakes.large_bundle(tmp_path)
    [backbone] = [file for file in made.files if file.kind == "backbone"]
    large = replace(backbone, bytes=807_700_000)
    sizes = [replace(f, bytes=45_100_000) if f.kind == "adapter" else large for f in made.files]
    need = needs.need(tmp_path, replace(made, files=tuple(sizes)), large, SAFE)
    assert need.own == pytest.approx(369e6, rel=0.1)
    assert need.mapped == 807_700_000
    # What is copied is memory too, and a shorter context is less of it.
    copied = needs.need(tmp_path, made, large, replace(SAFE, extra_buffers=True))
    plain = needs.need(tmp_path, made, large, SAFE)
    assert copied.own - plain.own == 807_700_000
    short = needs.need(tmp_path, made, large, replace(SAFE, context=1024))
    assert plain.own - short.own == 3072 * 16 * 8 * 128 * 2


def test_only_so_many_adapters_are_in_memory(tmp_path: Path) -> None:
    made = fakes.large_bundle(tmp_path, ("oranbench", "teleqna", "srsranbench"))
    [backbone] = [file for file in made.files if file.kind == "backbone"]
    names = {"oranbench": 5_000_000, "teleqna": 9_000_000, "srsranbench": 7_000_000}
    files = [replace(f, bytes=names.get(f.category or "", f.bytes)) for f in made.files]
    made = replace(made, files=tuple(files))

    def own(most: int | None) -> int:
        return needs.need(tmp_path, made, backbone, replace(SAFE, max_adapters=most)).own

    assert own(None) - own(2) == 5_000_000
    assert own(2) - own(1) == 7_000_000


def test_onnx_copies_its_weights_and_keeps_cells_of_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.bundle(tmp_path, adapters=())
    made = fake.onnx(tmp_path, adapters=(), quants=("int4",))
    [file] = [one for one in made.files if (one.kind, one.format) == ("backbone", "onnx")]
    past = {f"past_key_values.{at}.{kind}": (1, 8, "past", 64)
            for at in range(2) for kind in ("key", "value")}  # fmt: skip
    header = OnnxHeader(past, (), frozenset(), {}, {}, ())
    monkeypatch.setattr(onnx_header, "check", lambda _: header)
    need = needs.need(tmp_path, made, file, SAFE)
    cells = needs.CELLS * 4 * 4 * 8 * 64
    assert need.own == needs.INTERPRETER + made.disk(file) + cells + needs.KEPT
    assert need.mapped == 0
