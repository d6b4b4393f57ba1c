"""Progress bars: on a terminal drawn as they move, elsewhere a line now and then."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from immiscible_diffusion.utils.optional_deps import require_extra

SECONDS_BETWEEN_LINES = 30.0
DELAY = 5.0  # seconds, before what is mostly short is shown


class Progress:
    """Show how far ``total`` items are, from ``start`` on, with speed and time left; no bar if none are left."""

    def __init__(
        self, total: int, start: int, label: str, *, unit: str = "step", quiet: bool = False, delay: float = 0.0
    ) -> None:
        with require_extra("train", "the progress bar"):
            from tqdm import tqdm
        interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        options = {"initial": start, "unit": unit, "mininterval": interval, "delay": delay}
        self._bar: Any = tqdm(desc=label, total=total, dynamic_ncols=True, disable=quiet or start >= total, **options)

    def update(self, done: int, note: str = "", **figures: float) -> None:
        """Say that ``done`` items are done, with the latest ``figures`` and a ``note`` beside them."""
        if figures:
            said = [f"{name}={value:.4g}" for name, value in figures.items()]
            self._bar.set_postfix_str(", ".join(said + [note] * bool(note)), refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def watched(batches: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    """Yield ``batches`` of images, and show how many of ``total`` are done if it takes more than seconds."""
    done = 0
    with Progress(total, 0, label, unit="image", delay=DELAY) as bar:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(done)


def duration(seconds: float) -> str:
    """Write seconds as ``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
