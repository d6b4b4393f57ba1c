"""Classes of diffusers and transformers, imported when needed and without their warnings."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from immiscible_diffusion.utils.optional_deps import require_extra


def diffusers(name: str) -> Any:
    """The class ``name`` of diffusers."""
    return _of("diffusers", name)


def transformers(name: str) -> Any:
    """The class ``name`` of transformers."""
    return _of("transformers", name)


def _of(package: str, name: str) -> Any:
    with require_extra("sd", "the small pipeline"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(package), name)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the bars and remarks of transformers about a model of a few weights."""
    logging = transformers("logging")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
