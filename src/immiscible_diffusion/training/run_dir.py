"""A run folder: the recipe, what it ran on, metrics, weights, images and the state to resume.

recipe.json  environment.json  metrics.jsonl
moments.safetensors  calibration.safetensors  noise_distribution.safetensors
empty_axes.safetensors  semidiscrete.safetensors (and, while it is fitted, semidiscrete_fit.safetensors)
weights/model.safetensors  weights/model.json  samples/step_000500.png  checkpoint.pt
shards/step_000500: tensors of a checkpoint, where they are sharded
checkpoints/step_000500: the last three of an earlier step
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from immiscible_diffusion.models.trainable import load_trainable_state, trainable_state
from immiscible_diffusion.training.recipe import Recipe, differences
from immiscible_diffusion.utils import atomic_files
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.serialization import from_dict
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

# These may change between a run and its continuation without making it another experiment.
# What is drawn stays that of the first gradient_accumulation_steps x processes, which a checkpoint keeps.
RESUMABLE_FIELDS = (
    *(
        "gradient_accumulation_steps",
        "steps",
        "log_every",
        "preview_every",
        "checkpoint_every",
        "checkpoints_total_limit",
        "trackers",
        "prefetch",
        "num_workers",
    ),
    *("model.gradient_checkpointing", "task.eval", "task.preview_prompts", "task.push_to_hub"),
    "task.data.on_error",
)
_CHECKPOINT_FILES = ("checkpoint.pt", "weights/model.safetensors", "weights/model.json")
PACKAGES = ("immiscible-diffusion", "torch", "numpy", "scipy", "accelerate", "diffusers")


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    root: Path

    @classmethod
    def open(cls, root: str | os.PathLike[str], recipe: Recipe) -> "RunDir":
        """Return the folder for a run of ``recipe``, new or to be resumed; writes nothing.

        ValueError if it holds a run of another recipe.
        """
        run = cls(Path(root))
        if not run.has_begun:
            return run
        before = run.recipe()
        planned = recipe.optim.has_decay or recipe.loss.has_curriculum
        if planned and before.steps != recipe.steps and run.checkpoint.exists():
            raise ValueError(
                f"{root} holds a run of {before.steps} steps, and learning rate or curriculum "
                f"follow their number; with {recipe.steps} they would jump: choose another --out"
            )
        resumable = tuple(f"{name}{mark}" for name in RESUMABLE_FIELDS for mark in ":.")
        lines = differences(before, recipe)
        if changed := [line for line in lines if not line.startswith(resumable)]:
            raise ValueError(
                f"{root} holds a run of another recipe ({'; '.join(changed)}); choose another "
                f"--out, or the recipe of that run"
            )
        return run

    @classmethod
    def existing(cls, root: str | os.PathLike[str]) -> "RunDir":
        """Return the run in ``root``; ValueError if there is none."""
        run = cls(Path(root))
        if not run.has_begun:
            below = [*run.root.glob("*/recipe.json"), *run.root.glob("trials/*/*/recipe.json")]  # of a comparison
            hint = f"{below[0].parent} is one" if below else "train one first"
            raise ValueError(f"{root} is not a run folder (no recipe.json); {hint}")
        return run

    @property
    def has_begun(self) -> bool:
        """Whether a run was begun here."""
        return (self.root / "recipe.json").is_file()

    def begin(self, recipe: Recipe, device: torch.device | None = None, processes: int = 1, step: int = 0) -> None:
        """Make the folder and write what is about to run from ``step`` on; ValueError if it cannot be written.

        What killed processes left unfinished is removed, but for shards.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            atomic_files.write_record(self.root / "recipe.json", recipe.to_dict())
            now = {"step": step, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
            starts = [*self.starts(), now | environment(device, processes)]
            atomic_files.write_record(self.root / "environment.json", {"starts": starts})
        except OSError as error:
            raise ValueError(f"cannot write to the run folder {self.root}: {error}") from error

    def _remove_unfinished(self) -> None:
        for file in (self.root / name for name in _CHECKPOINT_FILES):
            atomic_files.remove_unfinished(file.parent, {file.name})
        for folder in self.root.glob("checkpoints/.step_*"):
            shutil.rmtree(folder)

    def recipe(self) -> Recipe:
        """Read the recipe of the run."""
        return Recipe.from_dict(atomic_files.read_record(self.root / "recipe.json"))

    def starts(self) -> list[dict[str, Any]]:
        """Return what each start of the run ran on, oldest first; ValueError if the file is of another form."""
        file = self.root / "environment.json"
        record = atomic_files.read_record(file) if file.exists() else {"starts": []}
        starts = record.get("starts", [record])  # earlier runs kept the last one alone
        known: tuple[dict[str, Any], ...] = from_dict(tuple[dict[str, Any], ...], starts, f"{file}: starts")
        for start in known:
            from_dict(str, start.get("hardware"), f"{file}: hardware")
            from_dict(dict[str, str], start.get("versions"), f"{file}: versions")
        return list(known)

    @property
    def metrics(self) -> Path:
        """The log: a JSON record a line, each of a kind and a step."""
        return self.root / "metrics.jsonl"

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Append a record."""
        atomic_files.append_jsonl(self.metrics, {"kind": kind, "step": step, **values})

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of a kind, oldest first."""
        return [record for record in self._log() if record["kind"] == kind]

    def _log(self) -> list[dict[str, Any]]:
        records = atomic_files.read_jsonl(self.metrics)
        for number, record in enumerate(records, start=1):
            from_dict(str, record.get("kind"), f"{self.metrics}, record {number}: kind")
            from_dict(int, record.get("step"), f"{self.metrics}, record {number}: step")
        return records

    def truncate_log_after(self, step: int) -> None:
        """Drop the records of steps after ``step``: a resumed run makes them again."""
        if self.metrics.exists():
            kept = [record for record in self._log() if record["step"] <= step]
            atomic_files.write_jsonl(self.metrics, kept)

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.root / "checkpoint.pt"

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state to resume from, complete or not at all."""
        with atomic_files.atomic_path(self.checkpoint, _num_bytes(state)) as temporary, temporary.open("wb") as file:
            torch.save(state, file)  # a path would hide why it cannot be written
            file.flush()
            os.fsync(file.fileno())  # what it replaces may be removed

    @property
    def step(self) -> int:
        """The step of the checkpoint, 0 if there is none; the bytes of its tensors are not read."""
        return int((self.load_checkpoint(mmap=True) or {"step": 0})["step"])

    def load_checkpoint(self, *, mmap: bool = False) -> dict[str, Any] | None:
        """Read the state to resume from, None if there is none; unpickles no code.

        With ``mmap``, its tensors are read when they are used, and not checked before.
        """
        if not self.checkpoint.exists():
            return None
        try:
            with ZipFile(self.checkpoint) as file:  # torch compares no checksums
                if not mmap and (damaged := file.testzip()) is not None:
                    raise ValueError(f"{damaged} in it is damaged")
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=mmap)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError, BadZipFile) as error:
            raise ValueError(f"{self.checkpoint} cannot be read ({error}); remove it to start from step 0") from error

    def shards(self, step: int) -> Path:
        """The folder with what the ranks have of a checkpoint's tensors, where they are sharded."""
        return self.root / "shards" / f"step_{step:06d}"

    def remove_shards_but(self, step: int) -> None:
        """Remove the shards that belong neither to the checkpoint of ``step`` nor to those that are kept."""
        needed = {self.shards(number) for number in (step, *self.kept_checkpoints)}
        for folder in set(self.root.glob("shards/step_*")) - needed:
            shutil.rmtree(folder)

    @property
    def kept_checkpoints(self) -> dict[int, Path]:
        """The folders of the checkpoints that are kept, by their steps."""
        folders = self.root.glob("checkpoints/step_*")
        return dict(sorted((int(folder.name.removeprefix("step_")), folder) for folder in folders))

    def kept_checkpoint(self, step: int) -> Path:
        """Return the folder of a kept checkpoint; ValueError if there is none of this step."""
        kept = self.kept_checkpoints
        if step not in kept:
            raise ValueError(
                f"{self.root} keeps no checkpoint of step {step} (there are: {', '.join(map(str, kept)) or 'none'}); "
                f"checkpoints_total_limit says how many a run keeps"
            )
        return kept[step]

    def keep_checkpoint(self, step: int, limit: int | None) -> None:
        """Keep the checkpoint and the weights just saved; of all that are kept, the newest ``limit``."""
        with atomic_files.atomic_folder(self.root / "checkpoints" / f"step_{step:06d}") as temporary:
            _link_files(self.root, temporary)
        for folder in list(self.kept_checkpoints.values())[: -limit if limit else 0]:
            _remove_kept(folder)

    def go_back_to(self, step: int) -> None:
        """Make a kept checkpoint the one to resume from, and remove those after it; ValueError if it is not kept."""
        _link_files(self.kept_checkpoint(step), self.root)
        for later, folder in self.kept_checkpoints.items():
            if later > step:
                _remove_kept(folder)

    def save_weights(self, model: nn.Module, step: int) -> None:
        """Write the averaged weights to publish: safetensors, and JSON to build the model from.

        Of a model that is trained in part, that part.
        """
        save_tensors(self.root / "weights" / "model.safetensors", trainable_state(model), {"step": str(step)})
        description = {"step": step, "recipe": self.recipe().to_dict()}
        atomic_files.write_json(self.root / "weights" / "model.json", description)

    def load_weights(self, model: nn.Module, step: int | None = None) -> int:
        """Put the averaged weights into ``model``, as it is trained; return their step: the last, or a kept one."""
        root = self.root if step is None else self.kept_checkpoint(step)
        path = root / "weights" / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"{self.root} has no weights yet; train it further")
        state, about = load_tensors(path)
        try:
            load_trainable_state(model, state)
            return int(about["step"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} does not fit the recipe beside it ({error})") from error

    def save_grid(self, images: Tensor, name: str, columns: int | None = None) -> None:
        """Write ``images`` ``[B, C, H, W]`` in [-1, 1] as one grid in samples/."""
        with atomic_files.atomic_path(self.root / "samples" / f"{name}.png") as temporary:
            image_grid(images, columns).save(temporary, format="PNG")


def _num_bytes(state: Any) -> int:
    """Return the bytes of the tensors in nested dictionaries."""
    if isinstance(state, dict):
        return sum(map(_num_bytes, state.values()))
    return state.nbytes if isinstance(state, Tensor) else 0


def _link_files(source: Path, target: Path) -> None:
    """Give ``target`` the checkpoint and the weights of ``source``; no bytes are copied where links are possible.

    All are written under temporary names, so that what is linked never changes.
    """
    for name in _CHECKPOINT_FILES:
        with atomic_files.atomic_path(target / name) as temporary:
            try:
                os.link(source / name, temporary)
            except OSError:
                shutil.copyfile(source / name, temporary)


def _remove_kept(folder: Path) -> None:
    """Remove a kept checkpoint under a hidden name: one that is half removed is not among those that are kept."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old")))


def last_step(metrics: Path) -> int:
    """Return the step of the last whole record of a metrics.jsonl, read at its end; 0 if none."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        whole = file.read().rpartition(b"\n")[0]
    steps = re.findall(rb'"step": (\d+)[,}]', whole)
    return int(steps[-1]) if steps else 0


def environment(device: torch.device | None = None, processes: int = 1) -> dict[str, Any]:
    """Return versions and hardware; ``device`` is what each of ``processes`` runs on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": " ".join(["immiscible", *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions,
        "hardware": hardware(device, processes),
        "processes": processes,
        "commit": commit(),
    }


@cache
def commit() -> str | None:
    """Return the git commit of this package: of its checkout, else of what pip installed; None if there is none."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    of_checkout = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for words in (["ls-files", "--error-unmatch", file.name], of_checkout):
            done = subprocess.run([*git, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        try:
            origin = distribution(PACKAGES[0]).read_text("direct_url.json")
        except PackageNotFoundError:
            return None
        vcs: dict[str, str] = json.loads(origin or "{}").get("vcs_info", {})
        return vcs.get("commit_id")


def hardware(device: torch.device | None = None, processes: int = 1) -> str:
    """Name what a run on ``device`` uses: its accelerators, or the processor and its cores.

    Without a device: the accelerators that are there.
    """
    if device is None and torch.cuda.is_available():
        device, processes = torch.device("cuda"), torch.cuda.device_count()
    if device is not None and device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    gpu = "its GPU (mps)" if device is not None and device.type == "mps" else "no GPU"
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {gpu}"
