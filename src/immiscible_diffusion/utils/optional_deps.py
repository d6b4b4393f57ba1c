"""Optional dependencies: imported where they are used, with an error that says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}  # modules that pip knows by another name


class MissingDependencyError(ImportError):
    """The optional dependencies of a feature are not installed."""


@contextmanager
def require_extra(extra: str, feature: str) -> Iterator[None]:
    """Turn a missing module, imported within this context, into an error that says what to install.

    ``with require_extra("train", "the U-Net"): from diffusers import UNet2DModel``
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("immiscible_diffusion"):
            raise
        package = (error.name or "").partition(".")[0]
        raise MissingDependencyError(
            f"{feature} needs the package '{package}', which is not installed; {how_to_install(package, extra)}"
        ) from error


def how_to_install(packages: str, extra: str = "") -> str:
    """The command that installs ``packages`` alone, and leaves the torch that is there; then that of all the extra.

    torchvision, which ``fid`` needs, would replace torch by the one that it was made for.
    """
    keep = f" torch=={torch.__version__.partition('+')[0]}" if extra == "fid" else ""
    everything = f" (everything of its kind, in a clone: pip install '.[{extra}]'{keep})" if extra else ""
    return f"run: pip install {DISTRIBUTIONS.get(packages, packages)}{keep}{everything}"
