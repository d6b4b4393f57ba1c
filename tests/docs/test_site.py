"""The site builds strictly without the network, loads nothing from elsewhere, and names what there is."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest

import immiscible_diffusion
from helpers import ROOT
from immiscible_diffusion import couplings, integrations, metrics, models
from immiscible_diffusion.cli.main import COMMANDS
from immiscible_diffusion.diffusion import losses, paths, samplers

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
WITHOUT_ENTRY = {"__version__", "Cond", "METHODS", "METRICS"}  # values without a docstring

pytestmark = [
    pytest.mark.slow,
    pytest.mark.subprocess,
    pytest.mark.skipif(
        not (find_spec("mkdocs") and find_spec("material") and find_spec("mkdocstrings")),
        reason="needs mkdocs, mkdocs-material and mkdocstrings: pip install '.[docs]'",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


class Elements(HTMLParser):
    """What a page loads, and where its links lead."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        if tag in LOADS:
            self.loads.append(values.get(LOADS[tag]))
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get("href"))
        if tag == "a":
            self.links.append(values.get("href"))


def pages(site):
    return {path.relative_to(site).as_posix(): Elements(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site):
    found = pages(site)
    assert len(found) > 40
    loads = {(name, load) for name, page in found.items() for load in page.loads if load}
    assert len(loads) > 100
    assert [pair for pair in loads if re.match(r"(?:\w+:)?//", pair[1])] == []
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text("utf-8")), style.name


def test_links_and_loads_lead_somewhere(site):
    for name, page in pages(site).items():
        if name == "404.html":  # its links are from the root of wherever the site is
            continue
        for link in filter(None, page.links + page.loads):
            target = link.partition("#")[0].partition("?")[0]
            if target and not re.match(r"\w+:", link):
                assert (site / name).parent.joinpath(target).resolve().exists(), f"{name}: {link}"


def test_every_command_is_on_the_page_of_the_command_line(site):
    page = pages(site)["cli.html"]
    assert {f"immiscible-{command}" for command in COMMANDS} <= page.ids
    text = (site / "cli.html").read_text("utf-8")
    for option in ("--optim.lr", "--init-noise", "--coupling", "--minutes", "--shape"):
        assert option in text


@pytest.mark.parametrize(
    "module",
    [immiscible_diffusion, couplings, integrations, losses, metrics, models, paths, samplers],
    ids=lambda module: module.__name__,
)
def test_every_public_name_has_an_entry(site, module):
    entries = {id.rpartition(".")[2] for name, page in pages(site).items() if "api/" in name for id in page.ids if id}
    assert set(module.__all__) - WITHOUT_ENTRY <= entries


def test_every_page_is_in_the_navigation(site):
    links = pages(site)["index.html"].links
    names = [path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")]
    missing = {name.replace("README", "index") for name in names} - set(links)
    assert not missing, f"name these in the nav of mkdocs.yml: {sorted(missing)}"


def test_files_outside_docs_are_pages(site):
    assert "repository/examples/own_trainer.py.html" in {
        os.path.normpath(f"trainers/{link}") for link in pages(site)["trainers/own.html"].links if link
    }
    assert "PairedLoader" in (site / "repository" / "examples" / "own_trainer.py.html").read_text("utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to look at the first page")
def test_the_figure_shows_its_numbers(site, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=4000", "--dump-dom", (site / "index.html").as_uri()]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    numbers = re.findall(r"<td>([^<]+)</td>", text.partition('class="plane-numbers"')[2].partition("</table>")[0])
    assert len(numbers) == 8
    assert numbers[::2] == numbers[1::2]  # at first no coupling is chosen
    distance, mixed = map(float, numbers[:4:2])
    assert 2.5 < distance < 4
    assert 20 < mixed < 100
