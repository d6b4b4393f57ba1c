"""The papers' own measurements on CIFAR-10 and on trained runs, beside what was published.

    OMP_NUM_THREADS=1 python benchmarks/papers_measurements.py --data CIFAR10_FOLDER \
        --runs RUN RUN --out FOLDER --markdown FILE

Distance reduction, distance between noise clusters, maps of clusters, the Gaussian fit of the
noise; and of every run the perturbation test and the prediction layer by layer. About 15 minutes
and 2 GB on one thread; ``--parts`` chooses.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion import KNN, Coupling, Independent, LinearAssignment
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.couplings import pair
from immiscible_diffusion.data import DataConfig, load_images
from reproduce.papers.clusters import cluster_distance, points_for
from reproduce.papers.distance_reduction import expected_reduction
from reproduce.papers.measurements import Extent, papers_measurements
from reproduce.papers.published_figures import ASSIGNED, NEAREST, P1, P2, VANILLA
from reproduce.papers.table import Row, Section
from reproduce.papers.trained_models import examine

PARTS = ("reduction", "clusters", "map", "fit", "trained")
Sections = Iterator[dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--images", type=int, default=10_000, help="the first so many (10000)")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="run folders to examine")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path(), help="pictures go to OUT/pictures")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--tiny", action="store_true", help="few points, to see that it runs")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {options.parts}")
    if options.data is None and set(parts) != {"trained"}:
        parser.error("--data FOLDER is needed for all but --parts trained")
    torch.set_num_threads(1)
    texts, began = [], time.perf_counter()
    for section in sections(options, parts):
        texts.append(markdown(section))
        print(texts[-1], flush=True)
        seconds = time.perf_counter() - began
        print(f"{section['title']}: {seconds:.0f} s", file=sys.stderr, flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(texts))
    return 0


def sections(options: argparse.Namespace, parts: list[str]) -> Sections:
    if set(parts) != {"trained"}:
        source = DataConfig("cifar10", path=str(options.data), limit=options.images)
        found = load_images(source)
        data = found.batch(torch.arange(len(found))).data
        makers: dict[str, Callable[[Tensor, argparse.Namespace], Sections]] = {
            "reduction": reductions,
            "clusters": clusters,
            "map": maps,
            "fit": fits,
        }
        for name in (part for part in PARTS if part in parts and part in makers):
            yield from makers[name](data, options)
    for run in options.runs if "trained" in parts else []:
        yield from examine(run, device="cpu", folder=options.out)


def reductions(data: Tensor, options: argparse.Namespace) -> Sections:
    sizes = (16,) if options.tiny else tuple(ASSIGNED)
    extent = Extent(batch_sizes=sizes, count=64 if options.tiny else 8192)
    couplings: dict[str, Coupling] = {"assignment": LinearAssignment()}
    couplings |= {f"KNN k = {k}": KNN(k) for k in sorted(NEAREST)}
    for name, coupling in couplings.items():
        yield from papers_measurements(data, coupling, which=["distance"], name=name, extent=extent)
    rows = [*latents(), *fitting(unit(data), sizes)]
    note = (
        "Which standard deviation (mean 0) would give exactly the published reduction? By "
        "bisection: of the closed form (KNN), of pairs assigned once, which no scale changes "
        "(assignment). Latents: isotropic data of the expected size in place of Stable Diffusion's."
    )
    title = "Standard deviation of the papers' images, inferred"
    yield Section(title, f"Table 2 of {P1}, Table 7 of {P2}", tuple(rows), note).to_json()


def unit(data: Tensor) -> Tensor:
    """Brought to mean 0, standard deviation 1."""
    return (data - data.mean()) / data.std()


def latents() -> Iterator[Row]:
    """KNN k = 64 on 4 x 32 x 32 latents, by the closed form."""
    for deviation in (0.8, 0.9, 1.0):
        data = torch.full((2, 4096), deviation)
        found = Mean(100 * (expected_reduction(data, KNN(64)) or 0), math.nan)
        label = f"KNN k = 64, latents of standard deviation {deviation}: reduction"
        yield Row(label, found, "%", NEAREST[64][2])


def fitting(data: Tensor, sizes: tuple[int, ...]) -> Iterator[Row]:
    for k, (setting, dim, figure) in sorted(NEAREST.items()):
        if dim == data[0].numel():
            few, own = data[:500], KNN(k)

            def expected(scale: float, few: Tensor = few, own: KNN = own) -> float:
                return expected_reduction(scale * few, own) or 0.0

            for word, found in crossings(expected, figure / 100):
                yield Row(f"KNN k = {k} ({setting}), {word}", Mean(found, math.nan))
    for size in sizes:
        assigned = assigned_at(data, size)
        for word, found in crossings(assigned, ASSIGNED.get(size, 2) / 100):
            yield Row(f"assignment, batch {size}, {word}", Mean(found, math.nan))


def assigned_at(data: Tensor, size: int, batches: int = 8) -> Callable[[float], float]:
    """Reduction by assignment as a function of the data's scale: the pairs do not depend on it."""
    generator, numbers = torch.Generator().manual_seed(0), []
    for _ in range(batches):
        batch = data[torch.randperm(len(data), generator=generator)[:size]]
        noise = torch.randn(batch.shape, generator=generator)
        after = pair(LinearAssignment(), batch, noise, generator=generator)
        flat, own, other = (x.flatten(1).double() for x in (batch, noise, after))
        products = [flat * flat, flat * own, own * own, flat * other, other * other]
        numbers.append(torch.stack([product.sum(dim=1) for product in products]))
    square, dot, length, dot_after, length_after = torch.cat(numbers, dim=1)

    def reduction(scale: float) -> float:
        before = (scale**2 * square - 2 * scale * dot + length).sqrt().mean()
        after = (scale**2 * square - 2 * scale * dot_after + length_after).sqrt().mean()
        return float(1 - after / before)

    return reduction


def crossings(reduction: Callable[[float], float], wanted: float) -> Iterator[tuple[str, float]]:
    """Scales in 0.05 ... 8 at which ``reduction`` passes ``wanted``, or where it comes nearest."""
    grid = [0.05 * 1.06**i for i in range(88)]
    values = [reduction(scale) - wanted for scale in grid]
    found = False
    for (low, a), (high, b) in zip(
        zip(grid, values, strict=True), zip(grid[1:], values[1:], strict=True), strict=False
    ):
        if (a < 0) != (b < 0):
            found = True
            for _ in range(30):
                middle = (low + high) / 2
                if (reduction(middle) < wanted) == (a < 0):
                    low = middle
                else:
                    high = middle
            yield "standard deviation", (low + high) / 2
    if not found:
        nearest = min(range(len(grid)), key=lambda i: abs(values[i]))
        word = f"never reached; nearest ({100 * (values[nearest] + wanted):.2f} %) at"
        yield word, grid[nearest]


def clusters(data: Tensor, options: argparse.Namespace) -> Sections:
    inferred = round(points_for(VANILLA[0], data[0].numel()))
    images, scale = (4, 100) if options.tiny else (32, 1)
    rows = []
    for points in (1000, 2000, 5000, inferred, 10_000):
        found = cluster_distance(data, Independent(), images=images, points=points // scale)
        theory = math.sqrt(2 * data[0].numel() / (points // scale))
        label = f"{points // scale:,} noises an image (spread over pairs {found.spread:.3f})"
        stated = VANILLA if points in (inferred, 10_000) else (None, None)
        rows.append(Row(label, found.distance, "", *stated, expected=theory))
    note = (
        "Without pairing, by the number of noises of a cluster. Expected: sqrt(2 D / M). The paper "
        "speaks of 10,000 noise points."
    )
    title = "Which number of noises gives the published distance without pairing"
    yield Section(title, f"section 4.2 of {P2}", tuple(rows), note).to_json()
    for name, coupling, size, points in (
        ("KNN k = 8", KNN(8), 256, inferred),
        ("KNN k = 4", KNN(4), 256, 2000),
        ("KNN k = 16", KNN(16), 256, 2000),
        ("KNN k = 64", KNN(64), 256, 2000),
        ("assignment", LinearAssignment(), 128, 1000),
        ("assignment", LinearAssignment(), 256, 1000),
        ("assignment", LinearAssignment(), 512, 400),
        ("assignment", LinearAssignment(), 1024, 200),
    ):
        rows, points = [], points // scale
        scales = {"": data}
        if isinstance(coupling, KNN):
            scales = {f", standard deviation {float(data.std()):.2f}": data, ", 1": unit(data)}
        for word, own in scales.items():
            found = cluster_distance(own, coupling, images=images, points=points, batch_size=size)
            published = (2.17, 0.35) if isinstance(coupling, KNN) else (4.11, 0.37)
            at = found.at(inferred)
            spread = float(found._pairs(found._at(inferred)).std())
            label = f"as {inferred:,} noises would have it{word} (spread over pairs {spread:.2f})"
            rows.append(Row(label, at, "", *published))
            rows.append(Row(f"without chance{word}", found.corrected))
        called = f"{name}, batch {size}" if name == "assignment" else name
        note = (
            f"Measured with {points:,} noises of each of {images} images. The published figure is "
            f"that of KNN with an unknown k (8 assumed), of assignment with an unknown batch."
        )
        yield Section(
            f"Distance between noise clusters, {called}",
            f"section 4.2 of {P2}",
            tuple(rows),
            note,
        ).to_json()


def maps(data: Tensor, options: argparse.Namespace) -> Sections:
    couplings: dict[str, Coupling] = {"independent": Independent(), "knn:k=8": KNN(8)}
    couplings["assignment"] = LinearAssignment()
    for name, coupling in couplings.items():
        yield from papers_measurements(
            unit(data), coupling, which=["map"], name=name, folder=options.out
        )


def fits(data: Tensor, options: argparse.Namespace) -> Sections:
    if options.tiny:
        return
    couplings: dict[str, Coupling] = {"independent": Independent(), "KNN k = 8": KNN(8)}
    for name, coupling in couplings.items():
        yield from papers_measurements(data, coupling, which=["gaussian_fit"], name=name)


def markdown(section: dict[str, Any]) -> str:
    """A section as it goes on a page."""
    head = "| | measured | expected | published | measured - published |\n|---|--:|--:|--:|---|"
    lines = [f"### {section['title']}", "", f"Stands for {section['stands_for']}.", "", head]
    for row in section["rows"]:
        value, error = row["measured"]["value"], row["measured"]["error"]
        measured = f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
        expected = "" if row["expected"] is None else f"{row['expected']:.4g}"
        published = "" if row["published"] is None else f"{row['published']:g}"
        spread = "" if row["published_spread"] is None else f" ± {row['published_spread']:g}"
        unit_of = f" ({row['unit']})" if row["unit"] else ""
        cells = [row["label"] + unit_of, measured, expected, published + spread, row["close"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", section["note"], ""]
    lines += [f"![{p['caption']}]({p['file']})\n" for p in section["pictures"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
