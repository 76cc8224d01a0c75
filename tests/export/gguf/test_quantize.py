"""What llama.cpp's quantizer is told, and what is read from its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_models as models
import numpy as np
import pytest

from tel_edge.export.commands import export
from tel_edge.export.gguf.importance import Importance
from tel_edge.export.gguf.quantize import (
    QUANTS,
    Fallback,
    Override,
    QuantizeOutcome,
    overrides,
    parsed,
    quantize,
    size,
)
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError, WorkError

NAMES = (
    "token_embd.weight",
    "blk.0.attn_q.weight",
    "blk.0.ffn_down.weight",
    "blk.1.attn_q.weight",
)
# What --tensor-type means.
# Values of --tensor-type, what they mean.
GOOD: tuple[tuple[list[str], tuple[Override, ...]], ...] = (
    ([], ()),
    (["attn_q=Q6_K"], (Override("attn_q", "Q6_K"),)),
    (["attn_q=q8_0"], (Override("attn_q", "Q8_0"),)),
    (["^token=bf16", "down=iq4_xs"], (Override("^token", "BF16"), Override("down", "IQ4_XS"))),
    ([r"blk\.[01]\.attn_q=F16"], (Override(r"blk\.[01]\.attn_q", "F16"),)),
    (["(?=blk)=F32"], (Override("(?=blk)", "F32"),)),
    (["blk.0=Q4_K", "blk=Q6_K"], (Override("blk.0", "Q4_K"), Override("blk", "Q6_K"))),
)


@pytest.mark.parametrize(("texts", "made"), GOOD)
def test_overrides(texts: list[str], made: tuple[Override, ...]) -> None:
    assert overrides(texts, NAMES) == made


# Values of --tensor-type, what is said.
BAD: tuple[tuple[list[str], str], ...] = (
    (["attn_q"], "'attn_q' is no PATTERN=TYPE"),
    (["=Q8_0"], "'=Q8_0' is no PATTERN=TYPE"),
    (["attn_q="], "no type '' in 'attn_q='"),
    (["attn_q=Q9_K"], "no type 'Q9_K' in 'attn_q=Q9_K'; there are: F32 F16 Q4_0"),
    (["attn_q=Q4_K_M"], "no type 'Q4_K_M'"),
    # Types of which llama.cpp aborts: one of its own use, and one that needs a matrix.
    (["attn_q=Q8_K"], "no type 'Q8_K'"),
    (["token_embd=IQ2_XXS"], "no type 'IQ2_XXS'"),
    (["attn_(=Q8_0"], "'attn_(' is no regular expression"),
    (["down=Q8_0", "attn_output=Q8_0"], "'attn_output' is in no tensor's name"),
    (["blk=Q8_0", "attn_q=Q6_K"], "'attn_q' is found only in tensors that an earlier"),
)


@pytest.mark.parametrize(("texts", "said"), BAD)
def test_overrides_that_mean_nothing(texts: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides(texts, NAMES)
    assert str(caught.value).startswith(f"--tensor-type: {said}")
    assert len(str(caught.value).splitlines()) == 1


# What the log says, in the pieces that it comes in.

REAL = (
    "llama_model_loader: - kv   0: general.name str = x\n",
    "llama_model_loader: - kv   1: odd str = [   1/   5] x - [    1], type =    f16, \n",
    "llama_tensor_get_type: blk.0.attn_k.weight                  - ",
    "applying manual override: q4_K -> f16\n",
    "warning: blk.0.attn_q.weight                  - ncols    128 not divisible by 256 ",
    "(required for type    q4_K) ",
    "-> falling back to    q5_0\n",
    "warning: blk.0.a_very_long_name_of_a_tensor_it_is.weight - ncols    100 not divisible by 256 ",
    "(required for type  iq4_xs) ",
    "(WARNING: must use F16 due to unusual shape) ",
    "-> falling back to     f16\n",
    "\nllama_model_quantize_impl: have importance matrix data with 2 entries\n",
    "[   1/   5] output_norm.weight                   - [  128,     1,     1,     1], ",
    "type =    f32, ",
    "size =    0.000 MiB\n",
    "[   2/   5] token_embd.weight                    - [  128,   512,     1,     1], ",
    "type =    f16, ",
    "\n====== llama_model_quantize_impl: did not find weights for token_embd.weight\n",
    "converting to q8_0 .. ",
    "size =     0.12 MiB ->     0.07 MiB\n",
    "[   3/   5] blk.0.attn_k.weight                  - [  128,    64,     1,     1], ",
    "type =    f16, ",
    "size =    0.016 MiB\n",
    "[   4/   5] blk.0.attn_q.weight                  - [  128,   128,     1,     1], ",
    "type =    f16, ",
    "converting to q5_0 .. ",
    "size =     0.03 MiB ->     0.01 MiB\n",
    "[   5/   5] blk.0.a_very_long_name_of_a_tensor_it_is.weight - [  100, 12345,     1,     1], ",
    "type =    f16, ",
    "size =    2.354 MiB\n",
    "llama_model_quantize_impl: model size  =     2.50 MiB (16.00 BPW)\n",
    "llama_model_quantize_impl: quant size  =     2.45 MiB (15.70 BPW)\n",
    "llama_model_quantize_impl: WARNING: 2 of 5 tensor(s) required fallback quantization\n",
)
LONG = "blk.0.a_very_long_name_of_a_tensor_it_is.weight"
MEANT = QuantizeOutcome(
    {
        "output_norm.weight": "F32",
        "token_embd.weight": "Q8_0",
        "blk.0.attn_k.weight": "F16",
        "blk.0.attn_q.weight": "Q5_0",
        LONG: "F16",
    },
    (Fallback("blk.0.attn_q.weight", "Q4_K", "Q5_0"), Fallback(LONG, "IQ4_XS", "F16")),
)
DRY = (
    "[   1/   3] output_norm.weight                   - [  256,     1,     1,     1], ",
    "type =    f32, ",
    "size =    0.001 MiB\n",
    "[   2/   3] token_embd.weight                    - [  256,   512,     1,     1], ",
    "type =    f16, ",
    "size =     0.25 MiB ->     0.10 MiB (q6_K)\n",
    "[   3/   3] blk.0.attn_q.weight                  - [  256,   256,     1,     1], ",
    "type =    f16, ",
    "size =     0.12 MiB ->     0.03 MiB (iq4_xs)\n",
    "llama_model_quantize_impl: model size  =     0.38 MiB (16.00 BPW)\n",
)
DRY_MEANT = {
    "output_norm.weight": "F32",
    "token_embd.weight": "Q6_K",
    "blk.0.attn_q.weight": "IQ4_XS",
}


def test_the_log_of_a_real_run() -> None:
    assert parsed("".join(REAL)) == MEANT


def test_the_log_of_a_dry_run() -> None:
    assert parsed("".join(DRY)) == QuantizeOutcome(DRY_MEANT, ())


@pytest.mark.parametrize("text", ["", "".join(DRY[3:]), "".join(REAL[:17])])
def test_a_log_without_all_tensors_is_not_guessed_from(text: str) -> None:
    with pytest.raises(WorkError, match="tells the types of"):
        parsed(text)


def test_size_is_in_whole_blocks_and_padded() -> None:
    shapes = {
        "output_norm.weight": (256,),
        "token_embd.weight": (3, 256),
        "blk.0.attn_q.weight": (2, 512),
    }
    # 256 * 4; 3 * 210 = 630, padded to 640; 4 * 136 = 544.
    assert size(QuantizeOutcome(DRY_MEANT, ()), shapes) == 1024 + 640 + 544
    del shapes["token_embd.weight"]
    assert size(QuantizeOutcome(DRY_MEANT, ()), shapes) == 1024 + 544


# The engine.


def exported(root: Path, **numbers: Any) -> Path:
    """Return the F16 file of a tiny model."""
    base = models.backbone(root / "base", "llama", **numbers)
    argv = ["--workspace", str(root), "--backbone", str(base), "--quant", "F16"]
    argv += ["--out", str(root / "bundle"), "--no-verify", "--quiet"]
    assert cli.run(export.parser(), export.work, argv) == 0
    (made,) = (root / "bundle").glob("*.gguf")
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: Any) -> Path:
    return exported(tmp_path_factory.mktemp("quantize"), rope_parameters=models.LLAMA_3)


def tensors(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def kinds(path: Path) -> dict[str, str]:
    return {name: tensor.tensor_type.name for name, tensor in tensors(path).items()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(reversed(t.shape.tolist())) for name, t in tensors(path).items()}


@pytest.mark.parametrize("name", ["Q4_K_M", "IQ4_XS", "Q8_0"])
def test_the_outcome_is_the_files_and_the_dry_runs(name: str, source: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    row, steps = QUANTS[name], list[int]()
    dry = quantize(source, tmp_path / "dry.gguf", row, steps.append, dry=True)
    assert list(tmp_path.iterdir()) == []
    made = quantize(source, tmp_path / "made.gguf", row, steps.append)
    found = kinds(tmp_path / "made.gguf")
    assert made.tensors == dry.tensors == found
    assert made.fallbacks == dry.fallbacks == ()
    assert found["rope_freqs.weight"] == "F32"
    assert steps == [1] * 2 * len(found)
    offset = GGUFReader(tmp_path / "made.gguf").data_offset
    written = (tmp_path / "made.gguf").stat().st_size
    assert size(dry, shapes(source)) == written - offset


def test_overrides_reach_the_engine(source: Path, tmp_path: Path) -> None:
    # The second is one that only Python reads; the first match counts.
    texts = [r"blk\.0\.ffn_down=Q8_0", r"(?i)ATTN_(?P<one>V)(?<=v)=iq4_xs", "ffn|embd=F16"]
    wanted = overrides(texts, list(kinds(source)))
    made = quantize(
        source, tmp_path / "made.gguf", QUANTS["Q4_K_M"], lambda _: None, overrides=wanted
    )
    found = kinds(tmp_path / "made.gguf")
    assert made.tensors == found
    expected = {
        "token_embd.weight": "F16",
        "blk.0.ffn_down.weight": "Q8_0",
        "blk.1.ffn_down.weight": "F16",
        "blk.0.ffn_up.weight": "F16",
        "blk.0.attn_v.weight": "IQ4_XS",
        "blk.1.attn_v.weight": "IQ4_XS",
        "blk.0.attn_q.weight": "Q4_K",
        "blk.0.ffn_norm.weight": "F32",
    }
    assert {name: found[name] for name in expected} == expected
    dry = quantize(
        source, tmp_path / "x", QUANTS["Q4_K_M"], lambda _: None, overrides=wanted, dry=True
    )
    assert dry == made


def test_narrow_rows_fall_back(tmp_path: Path) -> None:
    source = exported(tmp_path, hidden_size=128, intermediate_size=256)
    out = tmp_path / "made.gguf"
    made = quantize(source, out, QUANTS["Q4_K_M"], lambda _: None)
    found, sizes = kinds(out), shapes(source)
    assert made.tensors == found
    narrow = {name for name, shape in sizes.items() if len(shape) == 2 and shape[1] == 128}
    # The quantizer gives the embedding Q8_0 by a rule of its own.
    assert {one.tensor for one in made.fallbacks} == narrow - {"token_embd.weight"}
    assert Fallback("blk.0.attn_q.weight", "Q4_K", "Q5_0") in made.fallbacks
    assert all(found[one.tensor] == one.got for one in made.fallbacks)


def matrix(name: str, columns: int) -> Importance:
    """Return a matrix for one weight, in which few columns matter."""
    sums = np.random.default_rng(7).lognormal(0.0, 3.0, columns).astype(np.float32)
    return Importance({name: sums}, {name: 10.0}, ("own",), 1, 10)


def test_importance_weighs_the_columns_of_its_tensor(source: Path, tmp_path: Path) -> None:
    from gguf.quants import dequantize

    row, name = QUANTS["Q4_K_M"], "blk.0.attn_q.weight"
    given = matrix(name, 256)
    quantize(source, tmp_path / "plain.gguf", row, lambda _: None)
    made = quantize(source, tmp_path / "weighed.gguf", row, lambda _: None, importance=given)
    plain, weighed = tensors(tmp_path / "plain.gguf"), tensors(tmp_path / "weighed.gguf")
    assert made.tensors == kinds(tmp_path / "weighed.gguf") == kinds(tmp_path / "plain.gguf")
    assert made.tensors[name] == "Q4_K"
    differ = [one for one in plain if not np.array_equal(plain[one].data, weighed[one].data)]
    assert differ == [name]

    def error(tensor: Any) -> float:
        apart = dequantize(tensor.data, tensor.tensor_type) - tensors(source)[name].data
        return float((apart**2 * given.mean(name)).sum())

    # Columns in the wrong order would make it worse.
    assert error(weighed[name]) < 0.9 * error(plain[name])


def test_a_matrix_of_another_width_is_refused(source: Path, tmp_path: Path) -> None:
    given = matrix("blk.0.attn_q.weight", 5)
    with pytest.raises(WorkError, match=r"cannot make Q4_K_M of .*imatrix size 5 is different"):
        quantize(source, tmp_path / "x.gguf", QUANTS["Q4_K_M"], lambda _: None, importance=given)
