"""``immiscible toy``: what pairing does to data in the plane, computed and drawn."""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from immiscible_diffusion.cli.options import parse, run_path
from immiscible_diffusion.couplings.registry import check_coupling_name
from immiscible_diffusion.data.toy import ToyPoints, toy_points
from immiscible_diffusion.toy.film import frames, write_film
from immiscible_diffusion.toy.strip import write_strip
from immiscible_diffusion.toy.world import PARTS, Amounts, Scene, look
from immiscible_diffusion.training.run_dir import environment
from immiscible_diffusion.utils.atomic_files import atomic_path, write_json
from immiscible_diffusion.utils.progress import Progress

DEFAULT_COUPLINGS = ("independent", "knn:k=4", "knn:k=16", "assignment")
MOST = 6  # side by side


@dataclass(frozen=True)
class Options:
    """See in two dimensions what pairing does: everything computed, nothing trained.

    Writes toy.svg and toy.png (pairs, what noise tells of its sample, exact sampling paths, points
    mixed by noise level), toy.gif (data go to their noise and come back), toy.json (figures with
    their errors) and toy.npz (the points, for analyze and probe). A minute or two. Examples:

    immiscible toy

    immiscible toy --data two_moons --coupling independent --coupling transport:eps=4

    immiscible analyze --data runs/toy/toy.npz --cond label

    Args:
        data: eight_gaussians, two_moons, checkerboard, spiral or five_points.
        coupling: a coupling, repeated for each: independent, knn:k=16, knn:k=16,center=mean,
            assignment, transport:eps=4, calibrated:ANY, shuffled:ANY, or your own as
            "my_module:MyCoupling(k=3)". By default four. The animation shows the first and the last
            two.
        out: folder; by default runs/toy.
        points: how many data; by default 160.
        probes: noisy points at every level; errors fall as its root.
        batch_size: that couplings are called on; matters to assignment.
        seed: of the data and everything drawn.
        still: no animation.
    """

    data: str = "eight_gaussians"
    coupling: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    out: Path | None = None
    points: int | None = None
    probes: int = Amounts.probes
    batch_size: int = Amounts.batch_size
    seed: int = 0
    still: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False

    @property
    def couplings(self) -> tuple[str, ...]:
        """Those asked for."""
        named = tuple(name.strip() for name in self.coupling or DEFAULT_COUPLINGS)
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"a coupling is named twice: {twice[0]}")
        if len(named) > MOST:
            raise ValueError(f"at most {MOST} couplings fit side by side, got {len(named)}")
        for name in named:
            check_coupling_name(name)
        return named

    @property
    def amounts(self) -> Amounts:
        """How much is computed."""
        return Amounts(probes=self.probes, batch_size=self.batch_size, seed=self.seed)


def main(arguments: list[str]) -> int:
    """Compute, draw, and print a table."""
    options = parse(Options, arguments, "toy")
    names, amounts = options.couplings, options.amounts
    world = toy_points(options.data, options.points, seed=options.seed)
    out = run_path(options.out, "toy")
    scenes = looked_at(world, names, amounts)
    about = environment() | {"command": shlex.join(["immiscible", "toy", *arguments])}
    kept = {name: about[name] for name in ("command", "hardware", "versions")}
    data = {"name": world.name, "points": len(world), "groups": world.groups}
    settings = dataclasses.asdict(amounts)
    every = [scene.to_json() for scene in scenes]
    record = {"format": 1, **kept, "data": data, "amounts": settings, "couplings": every}
    write_json(out / "toy.json", record)
    files = [out / name for name in ("toy.json", "toy.npz", "toy.svg", "toy.png")]
    write_points(world, files[1])
    for path in files[2:]:
        write_strip(world, scenes, path)
    if not options.still:
        files.append(out / "toy.gif")
        with Progress(len(frames()), 0, "animation", unit="frame") as bar:
            write_film(world, scenes, files[-1], bar.update)
    sys.stdout.write("\n".join([*as_table(scenes), "", *map(str, files)]) + "\n")
    return 0


def write_points(world: ToyPoints, path: Path) -> None:
    """The data as an .npz that ``analyze`` and ``probe`` read."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, data=world.points.numpy(), label=world.group.numpy())


def looked_at(world: ToyPoints, names: tuple[str, ...], amounts: Amounts) -> list[Scene]:
    """Every coupling in turn, with a progress bar."""
    done = 0

    def told(_: int) -> None:
        nonlocal done
        done += 1
        bar.update(done)

    with Progress(PARTS * len(names), 0, f"computing {world.name}", unit="part") as bar:
        return [look(world, name, amounts, told) for name in names]


def as_table(scenes: list[Scene]) -> list[str]:
    """Figures by coupling, for people."""
    titles: dict[str, Callable[[Scene], str]] = {
        "coupling": lambda scene: scene.name,
        "points mixed at t = 1": lambda scene: _with_error(scene.figures["effective_points"]),
        "irreducible loss": lambda scene: _with_error(scene.figures["irreducible_loss"]),
        "path / straight": lambda scene: f"{scene.figures['straightness']:.3f}",
        "2 Euler steps miss by": lambda scene: f"{scene.figures['euler_error']['2']:.3g}",
        "end in own group": lambda scene: f"{scene.figures['own_group']:.0%}",
    }
    rows = [list(titles), *([said(scene) for said in titles.values()] for scene in scenes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    notes = dict.fromkeys(f"{s.name}: {e}" for s in scenes if (e := s.figures["estimate"]))
    return [*lines, *notes]


def _with_error(value: dict[str, Any]) -> str:
    error = value["error"]
    return f"{value['value']:.3g}" + (f" +- {error:.1g}" if error > 1e-9 else "")
