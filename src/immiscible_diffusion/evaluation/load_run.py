"""A trained run, loaded to sample from."""

import os
from dataclasses import replace

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.training.builders import Run, build_run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.device import pick_device


def load_run(
    run_dir: RunDir | str | os.PathLike[str],
    device: str = "auto",
    dataset: DataSet | None = None,
    *,
    allow_code: bool | str = False,
    step: int | None = None,
) -> Run:
    """Load a run with its averaged weights; ``device`` is auto, cpu, cuda or mps.

    The weights are the last, or those of the kept checkpoint of ``step``. ``dataset`` is the training data, if they
    are loaded already. ``allow_code`` is the code that the recipe's coupling may import, ``"module:Class"`` (True:
    whatever it names): a stranger's run folder could name any code.

    ValueError if there is no run, no weights yet, or data other than those it was trained on.
    """
    run_dir = run_dir if isinstance(run_dir, RunDir) else RunDir.existing(run_dir)
    where = pick_device(device)
    run = build_run(run_dir.recipe(), run_dir, where, dataset, allow_code=allow_code)
    run.task.check_files(run_dir)
    step = run_dir.load_weights(run.model, step)
    return replace(run, model=run.model.to(where).eval().requires_grad_(False), step=step)
