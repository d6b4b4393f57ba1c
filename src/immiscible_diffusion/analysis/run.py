"""A whole analysis: every coupling on one data set, part by part, as analysis.json has it."""

import warnings
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.analysis.advice import advice
from immiscible_diffusion.analysis.cache import Progress, Tally, plain
from immiscible_diffusion.analysis.conditions import summary
from immiscible_diffusion.analysis.config import Settings, path_json
from immiscible_diffusion.analysis.coupling_analysis import Subject, Work
from immiscible_diffusion.analysis.hashing import content_of
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.in_memory import InMemoryData, join_notes
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.batch import Batch, Cond


def analyze(
    data: Tensor | InMemoryData,
    couplings: Sequence[str | Coupling],
    *,
    cond: Cond | None = None,
    mask: Tensor | None = None,
    given: Sequence[str] | None = None,
    settings: Settings | None = None,
    name: str = "data",
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure how mixed ``data`` are under each of ``couplings``, and what these change.

    Args:
        data: ``[N, *shape]`` as the model sees them, with their mirror images if training mirrors;
            or a data set with its conditions, mask and name.
        couplings: names, as ``parse_coupling`` takes them, or couplings.
        cond: conditions ``[N, ...]`` for the couplings; whole numbers ``[N]`` are labels.
        mask: boolean, broadcasts to data, True where they are valid.
        given: of ``cond``, what the model will be given; all of them where not said.
        settings: what is measured, and how well.
        name: of the data.
        folder: finished parts, pictures and analysis.json are kept here; the same call goes on
            where a killed one was, and may add couplings (what is there stays).
        progress: called with the work done and the whole, in noisy points.

    Returns:
        What analysis.json has; ``report.analysis.write_analysis_page(folder)`` makes its page.

    Raises:
        ValueError: data, conditions, mask or couplings that cannot be analyzed, before anything
            long starts; or a folder that holds another analysis.
    """
    whole = (
        data if isinstance(data, InMemoryData) else InMemoryData(name, "", Batch(data, cond, mask))
    )
    work = Work.of(whole, given, settings or Settings(), None if folder is None else Path(folder))
    subjects = lined_up(work, couplings)
    work.parts.begin([subject.name for subject in subjects if subject.by_name])
    tally = Tally(sum(subject.length for subject in subjects), progress)
    values = plain({**_header(whole, work), "couplings": [s.measured(tally) for s in subjects]})
    values = finished(values | {"couplings": values["couplings"] + _earlier(work, values)})
    if work.parts.folder is not None:
        write_json(work.parts.folder / "analysis.json", values)
    return values


def lined_up(work: Work, couplings: Sequence[str | Coupling]) -> list[Subject]:
    """All couplings made and tried; those of the folder's plan before the new ones."""
    wanted: dict[str, str | Coupling] = {name: name for name in work.parts.planned()}
    for coupling in couplings:
        name = coupling.strip() if isinstance(coupling, str) else str(coupling)
        other = wanted.get(name, name)
        if not isinstance(other, str) and content_of(other) != content_of(coupling):
            raise ValueError(
                f"two different couplings print as {name}; give theirs a __str__ that tells them "
                f"apart"
            )
        wanted[name] = coupling
    if not wanted:
        raise ValueError("which couplings? none were given")
    return [
        Subject(work, name, work.lineup.make(each), isinstance(each, str))
        for name, each in wanted.items()
    ]


def _earlier(work: Work, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Couplings of the folder's analysis that were given as objects and now are not: kept."""
    folder, own = work.parts.folder, "immiscible-diffusion"
    if folder is None or not (folder / "analysis.json").exists() or not work.parts.planned():
        return []
    names = {entry["name"] for entry in values["couplings"]}
    before = read_json(folder / "analysis.json")
    kept = [entry for entry in before["couplings"] if entry["name"] not in names]
    if kept and before["versions"].get(own) != values["versions"][own]:
        gone = ", ".join(entry["name"] for entry in kept)
        warnings.warn(f"left out, as measured by another version: {gone}", stacklevel=3)
        return []
    return kept


def _header(whole: InMemoryData, work: Work) -> dict[str, Any]:
    settings = work.settings
    drawn = settings.show and work.parts.folder is not None
    about = {
        "name": whole.name,
        "note": join_notes(whole.note, work.look.note if drawn else ""),
        "images": len(work.images),
        "shape": list(work.data.shape[1:]),
        "rms": work.rms,
        "mirrored": whole.mirrored,
        "classes": whole.class_names and list(whole.class_names),
        "masked": work.images.mask is not None,
        "cond": list(work.names),
    }
    versions = {name: version(name) for name in ("immiscible-diffusion", "torch")}
    found = {"format": 1, "command": "", "date": date.today().isoformat(), "hardware": ""}
    found |= {"versions": versions, "seconds": 0.0, "data": about}
    found |= {"path": path_json(settings.path), "levels": list(settings.levels)}
    return found | {"probes": settings.probes, "seed": settings.seed}


def finished(values: dict[str, Any]) -> dict[str, Any]:
    """With what follows from the measurements of all couplings."""
    seconds = sum(entry["seconds"] for entry in values["couplings"])
    values = values | {"seconds": round(seconds, 1), "given_summary": summary(values["couplings"])}
    return values | {"advice": advice(values)}
