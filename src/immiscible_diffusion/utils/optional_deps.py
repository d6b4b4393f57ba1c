"""Optional dependencies: imported where they are used, with an error that names the extra."""

from collections.abc import Iterator
from contextlib import contextmanager


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
        raise MissingDependencyError(
            f"{feature} needs the package '{error.name}', which is not installed; "
            f"run: pip install 'immiscible-diffusion[{extra}]'"
        ) from error
