"""A whole analysis: every coupling on one data set."""

import warnings
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from immiscible_diffusion.analysis.cache import content_of
from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.coupling_analysis import CouplingAnalysis, Setup, Tally
from immiscible_diffusion.analysis.miscibility import Progress
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.reporting.analysis.records import (
    SCHEMA,
    AnalysisRecord,
    CouplingRecord,
    read_analysis,
    write_analysis,
)
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.serialization import to_dict

PACKAGE = "immiscible-diffusion"


def analyze(
    data: Tensor | InMemoryData,
    couplings: Sequence[str | Coupling],
    *,
    cond: Cond | None = None,
    mask: Tensor | None = None,
    conditioned_on: Sequence[str] | None = None,
    config: AnalysisConfig | None = None,
    name: str = "data",
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> AnalysisRecord:
    """Measure how mixed ``data`` are under each of ``couplings``, and what these change.

    Args:
        data: ``[N, *shape]`` as the model sees them, with their mirror images if training mirrors;
            or a data set with its conditions, mask and name.
        couplings: names, as ``parse_coupling`` takes them, or couplings.
        cond: conditions ``[N, ...]`` for the couplings; whole numbers ``[N]`` are labels.
        mask: boolean, broadcasts to data, True where they are valid.
        conditioned_on: names of the conditions that the model is given; all of ``cond`` by default.
        config: what is measured, and how well.
        name: of the data.
        folder: finished parts, thumbnails and analysis.json are kept here; the same call resumes
            one that was interrupted, and may add couplings (those of the folder stay).
        progress: called with the work done and all of it, in noisy points.

    Returns:
        What analysis.json holds; ``reporting.analysis.write_analysis_page(folder)`` makes its page.

    Raises:
        ValueError: data, conditions, mask or couplings that cannot be analyzed, before anything
            long starts; or a folder that holds another analysis.
    """
    source = data
    if not isinstance(source, InMemoryData):
        source = InMemoryData(name, "", Batch(source, cond, mask))
    target = None if folder is None else Path(folder)
    setup = Setup.of(source, conditioned_on, config or AnalysisConfig(), target)
    subjects = build_couplings(setup, couplings)
    earlier = _earlier(setup, [one.name for one in subjects])
    setup.cache.write_plan([one.name for one in subjects if one.by_name])
    tally = Tally(sum(one.length for one in subjects), progress)
    record = AnalysisRecord(
        schema=SCHEMA,
        command="",
        date=date.today().isoformat(),
        hardware="",
        versions={package: version(package) for package in (PACKAGE, "torch")},
        data=setup.record(),
        settings=to_dict(setup.config),
        couplings=(*(one.measure(tally) for one in subjects), *earlier),
    )
    if target is not None:
        write_analysis(record, target)
    return record


def build_couplings(setup: Setup, couplings: Sequence[str | Coupling]) -> list[CouplingAnalysis]:
    """All couplings built and tried; those of the folder's plan before the new ones."""
    every: dict[str, str | Coupling] = {name: name for name in setup.cache.planned()}
    for coupling in couplings:
        name = coupling.strip() if isinstance(coupling, str) else repr(coupling)
        other = every.get(name, name)
        if not isinstance(other, str) and content_of(other) != content_of(coupling):
            raise ValueError(
                f"two different couplings print as {name}; give theirs a __repr__ that tells them "
                f"apart"
            )
        every[name] = coupling
    if not every:
        raise ValueError("which couplings? got none; give names such as knn:k=4, or couplings")
    # Code is imported for names that were asked for; not for those of a plan in the folder alone.
    asked = {coupling.strip() for coupling in couplings if isinstance(coupling, str)}
    return [
        CouplingAnalysis(
            setup,
            name,
            setup.builder.build(coupling, allow_import=name in asked),
            isinstance(coupling, str),
        )
        for name, coupling in every.items()
    ]


def _earlier(setup: Setup, names: Sequence[str]) -> list[CouplingRecord]:
    """Couplings of the folder's analysis.json that were given as objects, and now are not."""
    path = setup.cache.folder and setup.cache.folder / "analysis.json"
    if not path or not path.exists():
        return []
    try:
        record = read_analysis(path)
    except ValueError as error:
        warnings.warn(f"left out: {error}", stacklevel=3)
        return []
    kept = [one for one in record.couplings if one.name not in names]
    if kept and record.versions.get(PACKAGE) != version(PACKAGE):
        left = ", ".join(one.name for one in kept)
        warnings.warn(f"left out, as measured by another version: {left}", stacklevel=3)
        return []
    return kept
