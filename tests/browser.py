"""A headless Chromium for pages that must work from a disk, without a network.

Debian's (`apt-get install chromium`) or Playwright's own (`playwright install chromium`); where
neither is, tests that need one are skipped and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A colour's contrast with its background by WCAG's formula, of every element with text of its own.
CONTRASTS = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const ink = e instanceof SVGElement ? style.fill : style.color;
    const [one, two] = [light(rgb(ink)), light(ground(e))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) found.push([e.textContent.slice(0, 40), ratio]);
  }
  return found;
}"""


@dataclass
class Opened:
    """A page, and what it did: console errors, and every URL that it asked for but `data:`."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self, width: int) -> int:
        """Pixels that the page is wider than a window of this width."""
        self.page.set_viewport_size({"width": width, "height": 900})
        return self.page.evaluate("document.documentElement.scrollWidth") - width

    def low_contrasts(self) -> list[tuple[str, float]]:
        """Texts whose contrast is below 4.5, WCAG's AA."""
        return self.page.evaluate(CONTRASTS)


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The file in a browser of its own."""
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=installed, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except Error:
            pytest.skip(
                "no Chromium here: apt-get install chromium, or playwright install chromium"
            )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)  # a busy machine
        seen = Opened(page)
        page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("dialog", lambda dialog: seen.errors.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith("data:") else seen.requests.append(r.url),
        )
        page.goto(path.as_uri())
        yield seen
        browser.close()
