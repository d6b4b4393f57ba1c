"""Which device: the one place that looks for them."""

import sys

import torch


def pick_device(name: str) -> torch.device:
    """``auto``: cuda if there is one, else mps, else cpu; ValueError for one that is not here."""
    if name != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
        if not available.get(name, False):
            raise ValueError(f"device {name} is not available here; use auto or cpu")
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")


def is_accelerated() -> bool:
    """Whether this machine has a device that is no CPU, of a kind that accelerate knows too."""
    if pick_device("auto").type != "cpu":
        return True
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def peak_memory(device: torch.device) -> float:
    """Return the most memory used so far, in bytes: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return float(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
