"""Where a workspace keeps what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder of `--workspace`; every path of the contract in `docs/architecture.md`."""

    root: Path

    def adapter(self, backbone: str, category: str) -> Path:
        """Return the PEFT folder of a trained adapter (with `training.json`)."""
        return self.root / "adapters" / backbone / category

    def bundle(self, backbone: str) -> Path:
        """Return the folder with `manifest.json` and the files it lists."""
        return self.root / "bundles" / backbone

    def imatrix(self, backbone: str, name: str) -> Path:
        """Return llama.cpp's file of an importance matrix."""
        return self.root / "imatrix" / backbone / f"{name}.gguf"

    def results(
        self,
        backbone: str,
        variant: str,
        category: str,
        part: str = "test",
        rotated: bool = False,
    ) -> Path:
        """Return the JSONL file of one scored variant; its summary has the suffix `.json`.

        The plain name is that of the test part; `rotated` says that every order of the options
        was asked.
        """
        words = [category, *([part] if part != "test" else []), *(["rotations"] if rotated else [])]
        return self.root / "results" / backbone / variant / f"{'.'.join(words)}.jsonl"

    @property
    def reports(self) -> Path:
        """Return the folder of report.md, report.json and report.html."""
        return self.root / "reports"
