"""`tel-merge` on tiny adapters: what each method makes of the factors, refusals, the comparison."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import for_merge
import pytest
from conftest import shown
from for_merge import NAMES, placed, put, record, scored

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.commands import merge
from tel_edge.train.merging import compared

torch = pytest.importorskip("torch")

root = for_merge.root
home = for_merge.home
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tel_merge(root: Path, home: Path, run_command: Command) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        common = ["--workspace", str(home), "--backbone", str(root / "base")]
        common += ["--dataset", str(root / "data"), "--quiet"]
        return run_command(merge.parser(), merge.work, *common, *argv)

    return run


def factors(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return (A, B) of each projection."""
    from safetensors.torch import load_file

    found = load_file(folder / "adapter_model.safetensors")
    names = [name.removesuffix(".lora_A.weight") for name in found if "lora_A" in name]
    return {
        name: (found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"]) for name in names
    }


def scale(folder: Path) -> float:
    config = json.loads((folder / "adapter_config.json").read_text())
    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    return float(config["lora_alpha"] / rank)


def product(folder: Path) -> dict[str, Any]:
    """Return what each projection gets added, as PEFT scales it."""
    return {name: b @ a * scale(folder) for name, (a, b) in factors(folder).items()}


def summed(home: Path, *weights: float) -> dict[str, Any]:
    parts = [product(placed(home, name)) for name in NAMES]
    return {
        name: sum(w * part[name] for w, part in zip(weights, parts, strict=True))
        for name in parts[0]
    }


def test_cat_is_exactly_the_weighted_sum(tel_merge: Command, home: Path) -> None:
    code, out, _ = tel_merge("--method", "cat", "--weights", "0.25,-2")
    assert code == 0
    assert "merged-cat: 2 adapters, rank 8" in out
    made = product(placed(home, "merged-cat"))
    for name, wanted in summed(home, 0.25, -2).items():
        torch.testing.assert_close(made[name], wanted, rtol=1e-5, atol=1e-6)
    said = record(home, "merged-cat")
    assert said["category"] == "merged-cat"
    assert said["merged"]["method"] == "cat"
    assert said["merged"]["weights"] == [0.25, -2]
    assert list(said["merged"]["sources"]) == list(NAMES)
    assert list(said["splits"]) == list(NAMES)
    assert [name for name in shown(placed(home, "")) if name.startswith(".")] == []


def test_linear_adds_the_factors_and_not_the_products(tel_merge: Command, home: Path) -> None:
    assert tel_merge("--method", "linear")[0] == 0
    made = factors(placed(home, "merged-linear"))
    parts = [factors(placed(home, name)) for name in NAMES]
    root_of_scale = math.sqrt(2)
    for name, (a, b) in made.items():
        for at, found in enumerate((a, b)):
            torch.testing.assert_close(found, sum(p[name][at] for p in parts) * root_of_scale)
    whole, wanted = product(placed(home, "merged-linear")), summed(home, 1, 1)
    assert any(not torch.allclose(whole[name], wanted[name], atol=1e-3) for name in whole)


def test_svd_is_the_best_of_its_rank(tel_merge: Command, home: Path) -> None:
    assert tel_merge("--method", "svd")[0] == 0
    made = product(placed(home, "merged-svd"))
    for name, wanted in summed(home, 1, 1).items():
        u, s, v = torch.linalg.svd(wanted, full_matrices=False)
        best = u[:, :4] * s[:4] @ v[:4]
        torch.testing.assert_close(made[name], best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_rslora_is_not_scaled_twice(
    root: Path, home: Path, tel_merge: Command, options: dict[str, Any]
) -> None:
    for seed, name in enumerate(NAMES):
        put(root, home, name, seed + 1, **options)
    assert tel_merge("--method", "cat")[0] == 0
    made = product(placed(home, "merged-cat"))
    for name, wanted in summed(home, 1, 1).items():
        torch.testing.assert_close(made[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_a_density_of_one_prunes_nothing(tel_merge: Command, home: Path, method: str) -> None:
    assert tel_merge("--method", method, "--density", "1")[0] == 0
    made = factors(placed(home, f"merged-{method}"))
    parts = [factors(placed(home, name)) for name in NAMES]
    for name, (a, _) in made.items():
        both = torch.stack([part[name][0] for part in parts])
        if method == "dare_linear":
            wanted = both.sum(0)
        else:
            kept = both.sign() == torch.where(both.sum(0) >= 0, 1, -1)
            wanted = (both * kept).sum(0) / kept.sum(0).clamp(min=1)
        torch.testing.assert_close(a, wanted * math.sqrt(2))


def test_chance_is_seeded_and_equal_merges_are_reused(tel_merge: Command, home: Path) -> None:
    folder = placed(home, "merged-dare_ties")
    weights = folder / "adapter_model.safetensors"
    argv = ("--method", "dare_ties", "--density", "0.3")
    assert tel_merge(*argv)[0] == 0
    first, when = weights.read_bytes(), weights.stat().st_mtime_ns
    assert tel_merge(*argv)[0] == 0
    assert weights.stat().st_mtime_ns == when
    assert tel_merge(*argv, "--seed", "7")[0] == 0
    assert weights.read_bytes() != first
    assert tel_merge(*argv)[0] == 0
    assert weights.read_bytes() == first
    share = (factors(folder)["base_model.model.model.layers.0.self_attn.q_proj"][0] != 0).float()
    assert 0.3 < share.mean() < 0.7, "a place is 0 where both dropped it: 0.49"

    # A method without chance does not depend on the seed.
    assert tel_merge("--method", "linear")[0] == 0
    when = (placed(home, "merged-linear") / "training.json").stat().st_mtime_ns
    assert tel_merge("--method", "linear", "--seed", "7", "--density", "0.9")[0] == 0
    assert (placed(home, "merged-linear") / "training.json").stat().st_mtime_ns == when


def test_another_process_writes_the_same_bytes(tel_merge: Command, root: Path, home: Path) -> None:
    assert tel_merge("--method", "dare_linear")[0] == 0
    script = "from tel_edge.train.commands.merge import main; main()"
    command = [sys.executable, "-c", script, "--workspace", str(home), "--quiet"]
    command += ["--backbone", str(root / "base"), "--method", "dare_linear", "--name", "again"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = (placed(home, folder) / name for folder in ("merged-dare_linear", "again"))
        assert one.read_bytes() == other.read_bytes()


def test_a_merged_adapter_loads_and_can_be_scored(
    tel_merge: Command, root: Path, home: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert tel_merge("--method", "cat")[0] == 0
    assert "test" not in record(home, "merged-cat")
    code, out, _ = tel_merge("--method", "cat", "--score", "--json")
    assert code == 0
    said = record(home, "merged-cat")["test"]
    assert [(row["category"], row["questions"]) for row in said] == [(name, 4) for name in NAMES]
    assert "oranbench    test Pass@1 " in out
    assert json.loads(out.splitlines()[-1])["merged"]["test"] == said
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    PeftModel.from_pretrained(base, placed(home, "merged-cat"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--weights", "1"), "2 numbers with commas are needed"),
        (("--weights", "1,x"), "2 numbers with commas are needed"),
        (("--weights", "0,0"), "not all 0"),
        (("--density", "0"), "a number above 0 and up to 1"),
        (("--adapter", "oranbench"), "two are the least"),
        (("--adapter", "oranbench,nobody"), "nobody: no finished adapter"),
        (("--name", "../x"), "a name of its own"),
        (("--name", "teleqna"), "a name of its own"),
        (("--score", "--seed", "1"), "teleqna: --dataset"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tel_merge: Command, home: Path, argv: tuple[str, ...], said: str
) -> None:
    code, out, err = tel_merge("--method", "ties", *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 2
    assert not placed(home, "merged-ties").exists()


def test_nothing_to_do_is_said(tel_merge: Command) -> None:
    assert tel_merge()[0] == 2
    assert tel_merge("--method", "magic")[0] == 2


def edit(name: str, **changed: Any) -> Callable[[Path], None]:
    return lambda folder: models.edit(folder / name, **changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("training.json", prompt="0" * 64), "prompt 000000000000, but "),
        (edit("training.json", backbone={"weights": "1" * 64}), "backbone 111111111111, but "),
        (
            edit("training.json", over={"sha256": "2" * 64}),
            "trained over file 222222222222, but None",
        ),
        (
            edit("adapter_config.json", target_modules=["q_proj"]),
            "target modules q_proj, but down_proj,q_proj",
        ),
        (edit("adapter_config.json", r=8), "rank 8, but 4 in"),
        (edit("training.json", backbone=None), "not the record of a training"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model"),
        (lambda folder: (folder / "training.json").write_text("{"), "no finished adapter"),
    ],
)
def test_adapters_that_do_not_fit_are_told(
    tel_merge: Command, home: Path, change: Callable[[Path], None], said: str
) -> None:
    change(placed(home, "oranbench"))
    code, _, err = tel_merge("--method", "linear")
    assert code == 2
    assert said in err
    assert str(placed(home, "oranbench")) in err


def test_ranks_may_differ_for_cat_and_svd_only(tel_merge: Command, root: Path, home: Path) -> None:
    put(root, home, "teleqna", 2, r=2, lora_alpha=4)
    assert tel_merge("--method", "linear")[0] == 2
    assert tel_merge("--method", "cat")[0] == 0
    assert record(home, "merged-cat")["config"]["rank"] == 6
    assert tel_merge("--method", "svd")[0] == 0
    assert record(home, "merged-svd")["config"]["rank"] == 4


def test_adapters_of_another_backbone_than_the_one_given(tel_merge: Command, home: Path) -> None:
    for name in NAMES:
        edit("training.json", backbone={"weights": "1" * 64})(placed(home, name))
    code, _, err = tel_merge("--method", "linear")
    assert code == 2
    assert "made for another backbone" in err


def test_the_comparison_has_a_column_for_each_kind(tmp_path: Path) -> None:
    splits = {"oranbench": "a", "teleqna": "b"}
    scored(tmp_path, "oranbench", {"oranbench": "a"}, oranbench=8)
    scored(tmp_path, "teleqna", {"teleqna": "b"}, teleqna=6)
    scored(tmp_path, "joint", splits, oranbench=7, teleqna=7)
    scored(tmp_path, "merged-linear", splits, oranbench=5)
    scored(tmp_path, "oranbench-over-Q8_0", {"oranbench": "a"}, oranbench=1)
    found, text = compared.compare(Workspace(tmp_path), "base")
    assert [column["name"] for column in found["columns"]] == ["own", "joint", "merged-linear"]
    assert [column["bytes"] for column in found["columns"]] == [4_000_000, 2_000_000, 2_000_000]
    # Only one category was scored with all.
    assert found["mean_over"] == ["oranbench"]
    assert [column["mean_pass1"] for column in found["columns"]] == [0.8, 0.7, 0.5]
    lines = text.splitlines()
    assert "| category | questions | own | joint | merged-linear |" in lines
    teleqna = next(line for line in lines if line.startswith("| teleqna"))
    assert teleqna == "| teleqna | 10 | 0.600 (0.313-0.832) | 0.700 (0.397-0.892) | - |"
    assert "| adapters, MB |  | 2, 4.00 | 1, 2.00 | 1, 2.00 |" in lines
    assert (tmp_path / "reports" / "adapters.md").read_text() == text
    assert json.loads((tmp_path / "reports" / "adapters.json").read_text()) == found


def test_scores_of_other_questions_are_not_put_beside(tmp_path: Path) -> None:
    scored(tmp_path, "oranbench", {"oranbench": "a"}, oranbench=8)
    scored(tmp_path, "joint", {"oranbench": "other"}, oranbench=9)
    found, text = compared.compare(Workspace(tmp_path), "base")
    assert "joint was scored on other questions of oranbench: left out" in text
    assert found["columns"][1]["scores"] == {}


def test_no_scores_at_all_is_told(tmp_path: Path, home: Path) -> None:
    with pytest.raises(InputError, match="no adapter has scores"):
        compared.compare(Workspace(home), "base")


def test_compare_alone_merges_nothing(tel_merge: Command, home: Path) -> None:
    scored(home, "joint", {"oranbench": "a"}, oranbench=8)
    code, out, _ = tel_merge("--compare", "--json")
    assert code == 0
    assert "| mean of 1 |  | 0.800 |" in out
    assert json.loads(out.splitlines()[-1])["compared"]["categories"] == ["oranbench"]
    assert set(shown(placed(home, ""))) == {*NAMES, "joint"}
