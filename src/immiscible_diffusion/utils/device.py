"""Devices and processes: the one place that looks for them and measures their memory."""

import sys
from datetime import timedelta
from typing import Any

import torch

from immiscible_diffusion.utils.optional_deps import require_extra

TIMEOUT = timedelta(days=2)  # ranks wait for one that evaluates or is slower; the default gives up after 10 minutes


def pick_device(name: str) -> torch.device:
    """Return the device ``name``, ``auto`` being cuda if there is one, else mps, else cpu; ValueError if absent."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = [*["cuda"] * cuda, *["mps"] * mps, "cpu"]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise ValueError(f"device {name} is not available here; use auto or cpu")
    return torch.device(name)


def is_accelerated() -> bool:
    """Whether this machine has a device other than the CPU that accelerate can use."""
    return pick_device("auto").type != "cpu" or (hasattr(torch, "xpu") and torch.xpu.is_available())


def process_state(device: str) -> Any:
    """Return accelerate's ``PartialState``: rank, number of processes, barriers."""
    with require_extra("train", "running on several processes"):
        from accelerate import PartialState
    return PartialState(cpu=pick_device(device).type == "cpu", timeout=TIMEOUT)


def rank_world_device(device: str) -> tuple[int, int, torch.device]:
    """Return rank, number of processes and device of this process; 0 and 1 when alone."""
    state, picked = process_state(device), pick_device(device)
    if state.num_processes > 1 and picked.type == "cuda":
        picked = state.device
    return state.process_index, state.num_processes, picked


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: on a cuda ``device``, or in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
