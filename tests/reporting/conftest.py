"""A made-up comparison with known answers: power laws with a floor, and seeded noise."""

import base64
import binascii
import math
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fixtures.analysis_record import analysis_record
from immiscible_diffusion.reporting.analysis import write_analysis_page
from immiscible_diffusion.reporting.analysis.records import write_analysis
from immiscible_diffusion.reporting.compare import Comparison
from immiscible_diffusion.reporting.compare.records import (
    CouplingEntry,
    Dataset,
    Floor,
    LossPoint,
    SampleMetrics,
    Trial,
)

STEPS = (250, 500, 1000, 2000, 4000, 6000)
SAMPLING_STEPS = (2, 5, 20, 100)
COUPLINGS = (
    CouplingEntry("independent", "independent", baseline=True),
    CouplingEntry("knn:k=16,center=mean", "KNN k=16, centerd"),
    CouplingEntry("shuffled(knn:k=16,center=mean)", "KNN k=16, shuffled", "knn:k=16,center=mean"),
    CouplingEntry("knn:k=64", "KNN k=64 <raw>"),
    CouplingEntry("shuffled(knn:k=64)", "KNN k=64, shuffled", "knn:k=64"),
    CouplingEntry("assignment", "linear assignment, B=256"),
)
# For each coupling: times faster, and the quality it cannot go below, by sampling steps.
BEHAVIOUR = {
    "independent": (1.0, (44.0, 9.5, 1.6, 0.9)),
    "knn:k=16,center=mean": (2.2, (19.5, 4.6, 1.5, 1.0)),
    "shuffled(knn:k=16,center=mean)": (1.1, (41.0, 8.4, 1.6, 1.0)),
    "knn:k=64": (2.6, (16.0, 9.0, 8.6, 9.0)),
    "shuffled(knn:k=64)": (1.1, (37.0, 11.0, 9.0, 9.2)),
    "assignment": (1.9, (10.2, 3.8, 1.7, 1.2)),
}


def plots_of(page):
    """The SVG text of every plot of ``page`` by its title."""
    sources = {image["alt"]: image["src"] for image in parse(page).images}
    mark = "data:image/svg+xml;base64,"
    return {
        alt: base64.b64decode(source.removeprefix(mark)).decode()
        for alt, source in sources.items()
        if source.startswith(mark)
    }


def parse(page):
    """Read a page; fails where an element is not closed."""
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    return structure


class Structure(HTMLParser):
    """Every opened element is closed; collects what could reach the network or run."""

    VOID = frozenset({"meta", "img", "br", "wbr", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.images, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def png(seed, size=96):
    """A small picture of random blobs as PNG bytes."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (size // 6, size // 6)).astype(np.uint8)
    pixels = np.kron(cells, np.ones((6, 6), np.uint8))
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body))

    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def power_trial(name, seed, faster=1.0, sampling_steps=20, steps=STEPS, slope=0.5, **options):
    """A run whose Frechet distance is exactly 100 (faster * step / 250)^-slope."""
    metrics = tuple(SampleMetrics(s, sampling_steps, frechet=100 * (faster * s / 250) ** -slope) for s in steps)
    return Trial(name, seed, metrics, **options)


def realistic_trial(name, seed):
    faster, ends = BEHAVIOUR[name]
    rng = np.random.default_rng([seed, *name.encode()])
    metrics = []
    for step in STEPS:
        for n, end in zip(SAMPLING_STEPS, ends, strict=True):
            value = (end + 60 * (faster * step / 250) ** -1.3) * math.exp(rng.normal(0, 0.03))
            metrics.append(SampleMetrics(step, n, n, value, None, value / 900, 0.0004, 0.8, 0.7, 0.9, 0.85, 0.0))
    decay = [math.exp(-step / 900) for step in STEPS]
    pairing = 0.0 if name == "independent" else 1.4 if "knn" in name else 6.3
    return Trial(
        name,
        seed,
        tuple(metrics),
        seconds_per_step=(21 + pairing + rng.normal(0, 0.2)) / 1000,
        pairing_share=pairing / (21 + pairing),
        pairing_ms=pairing,
        validation=tuple(LossPoint(s, 0.2 + 0.1 * d + 0.01 * faster) for s, d in zip(STEPS, decay, strict=True)),
        training=tuple(LossPoint(s, 0.22 - 0.02 * faster + 0.1 * d) for s, d in zip(STEPS, decay, strict=True)),
        grids={str(s): f"grids/{COUPLING_FILES[name]}-{seed}-{s}.png" for s in STEPS},
        finished=True,
    )


COUPLING_FILES = {entry.name: f"c{i}" for i, entry in enumerate(COUPLINGS)}


def make(trials, couplings=COUPLINGS, **changes):
    comparison = Comparison(
        recipe="digits",
        command="immiscible compare digits --seeds 3 --output runs/digits",
        note="8 x 8 digits, re-encoded as JPEG",
        hardware="1 CPU core",
        date="2026-11-23",
        versions={"immiscible-diffusion": "0.1.0", "torch": "2.13.0"},
        dataset=Dataset("digits", 1797),
        features="classifier (64-d)",
        accuracy=0.974,
        samples=2000,
        real_samples=1797,
        floor=Floor(2.2, 1.5, 3.1, 898, note="two random halves of the real set (898 each) are 2.2 apart"),
        sampling_steps=SAMPLING_STEPS,
        headline_steps=20,
        sampler="euler",
        eval_steps=STEPS,
        batch_size=256,
        total_steps=6000,
        parameters=1_234_567,
        couplings=couplings,
        trials=tuple(trials),
    )
    return replace(comparison, **changes)


@pytest.fixture
def comparison():
    return make([realistic_trial(entry.name, seed) for entry in COUPLINGS for seed in (0, 1, 2)])


@pytest.fixture
def partial(comparison):
    """Seed 2 of KNN k=64 stops at step 2,000, its control never ran, assignment has one seed."""
    trials = []
    for trial in comparison.trials:
        key = (trial.coupling, trial.seed)
        if trial.coupling == "shuffled(knn:k=64)" or (trial.coupling == "assignment" and trial.seed):
            continue
        if key == ("knn:k=64", 2):
            metrics = tuple(m for m in trial.metrics if m.step <= 2000)
            trial = replace(trial, metrics=metrics, finished=False, grids={"250": "grids/none.png"})
        trials.append(trial)
    return replace(comparison, trials=tuple(trials))


@pytest.fixture
def folder(comparison, tmp_path):
    """The folder of results.json, with every grid that the comparison names."""
    for trial in comparison.trials:
        for path in trial.grids.values():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(png(binascii.crc32(path.encode())))
    return tmp_path


@pytest.fixture
def build():
    """Make a comparison of 'independent', 'knn' and its control 'shuffled', without a floor."""
    pair = (
        CouplingEntry("independent", "independent", baseline=True),
        CouplingEntry("knn", "KNN"),
        CouplingEntry("shuffled", "shuffled", control_of="knn"),
    )
    return lambda trials, **changes: make(trials, couplings=pair, floor=None, **changes)


@pytest.fixture
def power():
    """Make trials that follow an exact power law."""
    return power_trial


@pytest.fixture
def empty():
    """A comparison without a run."""
    return make([])


@pytest.fixture
def parsed():
    """Read a page: fails where an element is not closed."""
    return parse


@pytest.fixture
def plots():
    """The SVG text of every plot of a page by its title."""
    return plots_of


@pytest.fixture
def analysis():
    """A made-up analysis."""
    return analysis_record()


def analysis_in(folder):
    """Write the made-up analysis and its thumbnails."""
    (folder / "thumbnails").mkdir()
    for number, name in enumerate(("d", "x0", "x1", "x2")):
        (folder / "thumbnails" / f"{name}.png").write_bytes(png(number))
    write_analysis(analysis_record(), folder)
    return folder


@pytest.fixture
def analysis_folder(tmp_path):
    """The folder of an analysis with its thumbnails."""
    return analysis_in(tmp_path)


@pytest.fixture(scope="session")
def analysis_page(tmp_path_factory):
    """The page of the made-up analysis, drawn once."""
    return write_analysis_page(analysis_in(tmp_path_factory.mktemp("analysis")))
