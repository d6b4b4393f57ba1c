"""Progress bars: on a terminal drawn as they move, elsewhere a line now and then."""

import sys
from types import TracebackType
from typing import Any

from immiscible_diffusion.utils.optional_deps import require_extra

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Show how far ``total`` items are, their speed and the time left, by tqdm.

    Args:
        total: items in all.
        start: items already done.
        label: what is being done.
        unit: what is counted.
        quiet: show nothing.
    """

    def __init__(
        self, total: int, start: int, label: str, *, unit: str = "step", quiet: bool = False
    ) -> None:
        with require_extra("train", "the progress bar"):
            from tqdm import tqdm
        terminal = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=total,
            initial=start,
            desc=label,
            unit=unit,
            disable=quiet,
            file=sys.stderr,
            mininterval=0.1 if terminal else SECONDS_BETWEEN_LINES,
            dynamic_ncols=terminal,
        )

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, **figures: float) -> None:
        """Say that ``done`` items are done, with the latest ``figures`` beside them."""
        if figures:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """Write seconds as ``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
