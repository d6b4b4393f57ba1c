"""``python -m examples.toy_2d``: what pairing does to data in the plane, computed and drawn."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import tyro
from tqdm import tqdm

from examples.toy_2d.animation import write_animation
from examples.toy_2d.data import toy_data
from examples.toy_2d.figure import write_figure
from examples.toy_2d.result import Extent, ToyResult, compute
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.couplings.registry import check_coupling_name
from immiscible_diffusion.utils.atomic_files import atomic_path, write_json

COUPLINGS = ("independent", "knn:k=4", "knn:k=16", "assignment")
MOST = 6  # side by side


@dataclass(frozen=True)
class Options:
    """See in two dimensions what pairing does: everything computed, nothing trained.

    Writes toy.svg and toy.png (pairs, what noise tells of its sample, exact sampling paths, points
    mixed by noise level), toy.gif (data go to their noise and come back), toy.json (figures with
    their errors) and toy.npz (the points, for ``immiscible analyze`` and ``pilot``). A minute or
    two. Examples:

    python -m examples.toy_2d --data two_moons --coupling independent --coupling gaussian_ot:eps=4

    immiscible analyze --data runs/toy/toy.npz --cond label

    Args:
        data: eight_gaussians, two_moons, checkerboard, spiral or five_points.
        coupling: a coupling, repeated for each, as of ``immiscible analyze``. By default four. The
            animation shows the first and the last two.
        out: folder.
        points: how many data; by default 160.
        probes: noisy points at every level; errors fall as its root.
        batch_size: that couplings are called on; matters to assignment.
        seed: of the data and everything drawn.
        still: no animation.
    """

    data: str = "eight_gaussians"
    coupling: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    out: Path = Path("runs/toy")
    points: int | None = None
    probes: int = Extent.probes
    batch_size: int = Extent.batch_size
    seed: int = 0
    still: bool = False


def main(arguments: list[str] | None = None) -> int:
    options = tyro.cli(Options, args=arguments, prog="python -m examples.toy_2d")
    names = [name.strip() for name in options.coupling or COUPLINGS]
    try:
        if len(set(names)) < len(names) or len(names) > MOST:
            raise ValueError(f"give at most {MOST} couplings, each once, got {', '.join(names)}")
        for name in names:
            check_coupling_name(name, allow_import=True)
        extent = Extent(options.probes, batch_size=options.batch_size, seed=options.seed)
        data = toy_data(options.data, options.points, seed=options.seed)
        results = [compute(data, name, extent) for name in tqdm(names, f"computing {data.name}")]
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    write_json(
        options.out / "toy.json",
        {
            "data": {"name": data.name, "points": len(data), "groups": data.groups},
            "extent": dataclasses.asdict(extent),
            "couplings": [result.to_json() for result in results],
        },
    )
    with atomic_path(options.out / "toy.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, data=data.points.numpy(), label=data.group.numpy())
    write_figure(data, results, options.out / "toy.svg", options.out / "toy.png")
    if not options.still:
        write_animation(data, results, options.out / "toy.gif")
    print(f"{as_table(results)}\n\nfiles: {options.out}")
    return 0


def as_table(results: list[ToyResult]) -> str:
    """Figures by coupling, and how estimated densities were."""
    metrics = {result.name: result.metrics for result in results}
    table = {
        name: {
            "points mixed at t = 1": _with_error(one.effective_points),
            "irreducible loss": _with_error(one.irreducible_loss),
            "path / straight": f"{one.straightness:.3f}",
            "2 Euler steps miss by": f"{one.euler_error[2]:.3g}",
            "end in own group": f"{one.own_group:.0%}",
        }
        for name, one in metrics.items()
    }
    notes = [f"{name}: {one.estimate}" for name, one in metrics.items() if one.estimate]
    return "\n".join([pandas.DataFrame(table).T.to_string(), *notes])


def _with_error(mean: Mean) -> str:
    return f"{mean.value:.3g}" + (f" +- {mean.error:.1g}" if mean.error > 1e-9 else "")


if __name__ == "__main__":
    sys.exit(main())
