"""What a probe keeps: the plan and, cell by cell, the distances. Read again, it goes on."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from immiscible_diffusion.utils.atomic_files import read_json, write_json


@dataclass(frozen=True)
class Point:
    """A distance: an arm (with ``matched:``), a training step, a number of sampling steps."""

    arm: str
    step: int
    budget: int
    distance: float


@dataclass(frozen=True)
class Trial:
    """One finished training."""

    coupling: str
    seed: int
    seconds: float
    points: tuple[Point, ...]


@dataclass
class Store:
    """The folder of a probe.

    Attributes:
        folder: holds plan.json, cells.json, probe.json, probe.html and samples/.
    """

    folder: Path

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan."""
        self._write("plan.json", plan)

    def plan(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The plan that the folder holds, if any; ValueError if it is of another question."""
        path = self.folder / "plan.json"
        if not path.exists():
            return None
        plan: dict[str, Any] = read_json(path)
        before = plan.get("asked", {})
        if changed := [name for name in asked if before.get(name) != asked[name]]:
            name = changed[0]
            raise ValueError(
                f"{self.folder} holds a probe of another question ({name}: {before.get(name)} -> "
                f"{asked[name]}); choose another --out"
            )
        return plan

    def cells(self) -> list[Trial]:
        """Finished trainings."""
        path = self.folder / "cells.json"
        if not path.exists():
            return []
        try:
            return [
                Trial(**{**cell, "points": tuple(Point(**point) for point in cell["points"])})
                for cell in read_json(path)
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no cells of a probe ({error}); remove it") from error

    def keep(self, cells: Iterable[Trial]) -> None:
        """Write the finished trainings."""
        self._write("cells.json", [asdict(cell) for cell in cells])

    def _write(self, name: str, values: Any) -> None:
        try:
            write_json(self.folder / name, values)
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder}: {error}") from error


def finals(
    cells: Iterable[Trial], couplings: Iterable[str]
) -> dict[tuple[str, int], dict[int, float]]:
    """(arm, budget) -> seed -> distance at the last step, on seeds that all couplings finished."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    kept, names = list(cells), set(couplings)
    seeds = {cell.seed for cell in kept}
    whole = {s for s in seeds if {cell.coupling for cell in kept if cell.seed == s} >= names}
    for cell in kept:
        last = max((point.step for point in cell.points), default=0)
        for point in cell.points:
            if cell.seed in whole and point.step == last:
                found.setdefault((point.arm, point.budget), {})[cell.seed] = point.distance
    return found
