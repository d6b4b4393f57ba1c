"""A run folder: the recipe, what it ran on, metrics, weights, images and the state to resume.

recipe.json  environment.json  metrics.jsonl
moments.safetensors  calibration.safetensors  noise_distribution.safetensors
weights/model.safetensors  weights/model.json  samples/step_000500.png  checkpoint.pt
"""

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.models.trainable import (
    load_trainable_state,
    trainable_names,
    trainable_state,
)
from immiscible_diffusion.training.recipe import Recipe, differences
from immiscible_diffusion.utils.atomic_files import (
    append_jsonl,
    atomic_path,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.optional_deps import require_extra

# These may change between a run and its continuation without making it another experiment.
RESUMABLE_FIELDS = (
    *("steps", "log_every", "preview_every", "checkpoint_every", "trackers", "prefetch"),
    *("task.eval", "task.preview_prompts", "task.push_to_hub"),
)
PACKAGES = ("immiscible-diffusion", "torch", "numpy", "scipy", "accelerate", "diffusers")


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    root: Path

    @classmethod
    def open(cls, root: str | os.PathLike[str], recipe: Recipe) -> "RunDir":
        """A folder for a run of ``recipe``, new or with a run of it to go on with; writes nothing.

        Raises:
            ValueError: the folder holds a run of another recipe.
        """
        run = cls(Path(root))
        if run.has_begun:
            run._check_same(recipe)
        return run

    @property
    def has_begun(self) -> bool:
        """Whether a run was begun here."""
        return (self.root / "recipe.json").is_file()

    def begin(self, recipe: Recipe, device: torch.device | None = None, processes: int = 1) -> None:
        """Make the folder and write what is about to run; ValueError if it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / "recipe.json", recipe.to_dict())
            write_json(self.root / "environment.json", environment(device, processes))
        except OSError as error:
            raise ValueError(f"cannot write to the run folder {self.root}: {error}") from error

    @classmethod
    def existing(cls, root: str | os.PathLike[str]) -> "RunDir":
        """The run in ``root``; ValueError if there is none."""
        run = cls(Path(root))
        if not run.has_begun:
            raise ValueError(f"{root} is not a run folder (no recipe.json); train one first")
        return run

    def _check_same(self, recipe: Recipe) -> None:
        before = self.recipe()
        planned = recipe.optim.lr_schedule != "constant" or recipe.loss.has_curriculum
        if planned and before.steps != recipe.steps and self.checkpoint.exists():
            raise ValueError(
                f"{self.root} holds a run of {before.steps} steps, and learning rate or curriculum "
                f"follow their number; with {recipe.steps} they would jump: choose another --out"
            )
        changed = [
            line
            for line in differences(self.recipe(), recipe)
            if not line.startswith(
                tuple(f"{name}{mark}" for name in RESUMABLE_FIELDS for mark in ":.")
            )
        ]
        if changed:
            raise ValueError(
                f"{self.root} holds a run of another recipe ({'; '.join(changed)}); "
                f"choose another --out, or the recipe of that run"
            )

    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return Recipe.from_dict(read_json(self.root / "recipe.json"))

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.root / "checkpoint.pt"

    @property
    def moments(self) -> Path:
        """Moments of the data, for couplings that use them."""
        return self.root / "moments.safetensors"

    @property
    def calibration(self) -> Path:
        """Distribution of the noise before calibration corrects it."""
        return self.root / "calibration.safetensors"

    @property
    def noise_distribution(self) -> Path:
        """Distribution of the noise that the model is trained on, for ``init_noise`` matched."""
        return self.root / "noise_distribution.safetensors"

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Append a record to metrics.jsonl."""
        append_jsonl(self.root / "metrics.jsonl", {"kind": kind, "step": step, **values})

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind, oldest first."""
        every = read_jsonl(self.root / "metrics.jsonl")
        return [record for record in every if record["kind"] == kind]

    def truncate_log_after(self, step: int) -> None:
        """Drop the records of steps after ``step``: a resumed run makes them again."""
        path = self.root / "metrics.jsonl"
        if path.exists():
            write_jsonl(path, [record for record in read_jsonl(path) if record["step"] <= step])

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state to resume from, complete or not at all."""
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to resume from, None if there is none; read without unpickling code."""
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(
                self.checkpoint, map_location="cpu", weights_only=True
            )
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
            raise ValueError(
                f"{self.checkpoint} cannot be read ({error}); remove it to start from step 0"
            ) from error
        return state

    def save_weights(self, model: nn.Module, step: int, names: list[str] | None = None) -> None:
        """Write the averaged weights to publish: safetensors, and JSON to build the model from.

        Of a model that is trained in part, the parameters ``names`` alone.
        """
        with require_extra("train", "saving weights"):
            from safetensors.torch import save_file
        tensors = {
            k: v.detach().cpu().contiguous() for k, v in trainable_state(model, names).items()
        }
        with atomic_path(self.root / "weights" / "model.safetensors") as temporary:
            save_file(tensors, str(temporary), {"step": str(step)})
        write_json(
            self.root / "weights" / "model.json", {"step": step, "recipe": self.recipe().to_dict()}
        )

    def load_weights(self, model: nn.Module) -> int:
        """Put the averaged weights into ``model``, as it is trained; returns their step."""
        with require_extra("train", "loading weights"):
            from safetensors import SafetensorError, safe_open
        path = self.root / "weights" / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"{self.root} has no weights yet; train it further")
        try:
            with safe_open(str(path), framework="pt") as file:
                step = int((file.metadata() or {})["step"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                load_trainable_state(model, state, trainable_names(model))
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise ValueError(f"{path} does not fit the recipe beside it ({error})") from error
        return step

    def save_grid(self, images: Tensor, name: str, columns: int | None = None) -> Path:
        """Write ``images`` ``[B, C, H, W]`` in [-1, 1] as one grid in samples/."""
        path = self.root / "samples" / f"{name}.png"
        with atomic_path(path) as temporary:
            image_grid(images, columns).save(temporary, format="PNG")
        return path


def last_step(metrics: Path) -> int:
    """The step of the last whole record of a metrics.jsonl, from its end alone; 0 if none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            tail = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(tail):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # a line being written, or cut by the seek
            continue
    return 0


def environment(device: torch.device | None = None, processes: int = 1) -> dict[str, Any]:
    """Versions and hardware, for the record; ``device`` is what each of ``processes`` runs on."""
    return {
        "command": " ".join(["immiscible", *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": dict(_versions(PACKAGES)),
        "hardware": hardware(device, processes),
    }


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def hardware(device: torch.device | None = None, processes: int = 1) -> str:
    """What a run on ``device`` uses: its accelerators, or the processor and its cores.

    Without a device: the accelerators that are there.
    """
    if device is None and torch.cuda.is_available():
        device, processes = torch.device("cuda"), torch.cuda.device_count()
    if device is not None and device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    gpu = "its GPU (mps)" if device is not None and device.type == "mps" else "no GPU"
    return f"{processor_name()}, {os.cpu_count()} cores, {gpu}"


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
