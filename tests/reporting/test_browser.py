"""The pages in a real browser: nothing overflows, every picture is there, something is drawn."""

import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.compare import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1280, 390)  # a desk and a phone
HEIGHT = 1600
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the pages with")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--virtual-time-budget=10000",
)
# Run at the end of a copy of the page, in a frame as wide as the screen.
MEASURE = """<script>onload = () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const images = [...document.images], plots = [...document.querySelectorAll(".panel img")];
  parent.postMessage({width: innerWidth, needed: document.documentElement.scrollWidth,
    images: images.length, broken: images.filter(one => !one.naturalWidth).length,
    plots: plots.length, flat: plots.filter(one => one.getBoundingClientRect().height < 50).length,
    small: Math.min(...[...document.querySelectorAll("p, td, li, figcaption")].map(
      one => parseFloat(getComputedStyle(one).fontSize)))}, "*"); };</script>"""
COLLECT = """<!DOCTYPE html><body style="margin: 0"><script>
addEventListener("message", event => { const told = document.createElement("pre");
  told.textContent = JSON.stringify(event.data); document.body.append(told); });</script>"""


def looked_at(page, folder):
    """What the browser measures of ``page`` at every width, and a picture of all."""
    text = page.read_text(encoding="utf-8")
    # The policy stays in force but for the script that measures.
    allowed = "style-src 'unsafe-inline'"
    text = text.replace(allowed, f"{allowed}; script-src 'unsafe-inline'", 1)
    (folder / "measured.html").write_text(text.replace("</main>", f"</main>{MEASURE}"), "utf-8")
    frame = '<iframe src="measured.html" width="{}" height="{}" style="border: 0"></iframe>'
    frames = "".join(frame.format(width, HEIGHT) for width in WIDTHS)
    (folder / "frames.html").write_text(COLLECT + frames, "utf-8")
    picture = folder / "seen.png"
    size = f"--window-size={sum(WIDTHS) + 20},{HEIGHT}"
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'browser'}", size, "--dump-dom"]
    command += [f"--screenshot={picture}", (folder / "frames.html").as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = [json.loads(told) for told in re.findall(r"<pre>(\{.*?\})</pre>", run.stdout)]
    return {each["width"]: each for each in found}, picture


def check(page, folder, images):
    found, picture = looked_at(page, folder)
    assert sorted(found) == sorted(WIDTHS)
    for width, seen in found.items():
        assert seen["needed"] <= width
        assert (seen["images"], seen["broken"]) == (images, 0)
        assert seen["plots"] > 5
        assert seen["flat"] == 0
        assert seen["small"] >= 12  # pixels: readable
    colors = drawn_colors(picture)
    assert colors[0] > 30
    assert colors[1] > 30


def drawn_colors(picture):
    """Different colors on the desk's half and on the phone's half of ``picture``."""
    image = pytest.importorskip("PIL.Image").open(picture).convert("RGB")
    halves = ((0, 0, WIDTHS[0], HEIGHT), (WIDTHS[0], 0, image.width, HEIGHT))
    return [len(image.crop(half).getcolors(1 << 24)) for half in halves]


def test_the_page_of_an_analysis(analysis_page, tmp_path):
    check(analysis_page, tmp_path, images=3 * (1 + 2 * 4) + 24)


def test_the_report_of_a_comparison(comparison, folder, tmp_path):
    check(write_report(comparison, folder), tmp_path, images=6 * 4 + 14)
