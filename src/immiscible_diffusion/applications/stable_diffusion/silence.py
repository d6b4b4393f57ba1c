"""Without the bars and remarks of diffusers and transformers about weights read or written."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from immiscible_diffusion.utils.optional_deps import require_extra

TALKERS = ("diffusers.utils.logging", "transformers.utils.logging")


@contextmanager
def quiet() -> Iterator[None]:
    """Errors are still said."""
    with require_extra("sd", "Stable Diffusion"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        talkers = [importlib.import_module(name) for name in TALKERS]
    before = [talker.get_verbosity() for talker in talkers]
    bars = talkers[1].is_progress_bar_enabled()
    try:
        for talker in talkers:
            talker.set_verbosity_error()
        talkers[1].disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for talker, verbosity in zip(talkers, before, strict=True):
            talker.set_verbosity(verbosity)
        if bars:
            talkers[1].enable_progress_bar()
