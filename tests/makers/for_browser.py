"""A real browser for the pages, and what they are looked at with."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path(os.environ.get("TEL_CHROMIUM", "/usr/bin/chromium"))
NEEDED = [
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"no {CHROMIUM}: run scripts/install_chromium.sh"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="no playwright: pip install 'tel-edge[dev]'",
    ),
]
# What a browser does by itself would look like the page's own requests.
QUIET = ("--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--no-first-run", "--disable-sync", "--no-pings")  # fmt: skip


@contextmanager
def launched(home: Path) -> Iterator[Any]:
    """Start a browser whose own files are in `home`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        made = play.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])],
            env={**os.environ, "HOME": str(home)},
        )
        yield made
        made.close()


# The contrast of each text with what lies behind it, the least first; WCAG 2.2, 1.4.3.
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const made = parse(getComputedStyle(node).backgroundColor);
      if (made.length < 4 || made[3] > 0) return made;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!own || !node.checkVisibility() || node.closest("svg")) continue;
    const [one, other] = [parse(getComputedStyle(node).color), behind(node)].map(luminance);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found.push([ratio, node.className + ": " + node.textContent.slice(0, 40)]);
  }
  return found.sort(([a], [b]) => a - b);
}"""
