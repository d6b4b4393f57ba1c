"""Progress of a training run: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from immiscible_diffusion.utils.optional_deps import require_extra

PLAIN_SECONDS = 30.0


class Progress:
    """Shows step, loss, speed, share of the step spent pairing, and time left.

    Args:
        total: steps in all.
        start: steps already done.
        label: what is being done.
        unit: what is counted.
        quiet: show nothing.
    """

    def __init__(
        self, total: int, start: int, label: str, *, unit: str = "step", quiet: bool = False
    ) -> None:
        self.total, self.start, self.label, self.quiet = total, start, label, quiet
        self.unit, self.last = unit, start
        self.began = self.said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr.isatty():
            self._bar = self._make_bar()
            self._bar.start()
            # With a text from the first: the bar is drawn within add_task.
            self._task = self._bar.add_task(
                self.label, total=self.total, completed=self.start, text=""
            )
        return self

    def _make_bar(self) -> Any:
        with require_extra("train", "the progress bar"):
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar
        return Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def update(self, step: int, *, loss: float | None = None, pairing: float | None = None) -> None:
        """Tell how far it is: ``step`` done, latest ``loss``, ``pairing`` share in [0, 1]."""
        if self.quiet:
            return
        text = self._text(step, loss, pairing)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self.said > PLAIN_SECONDS or step == self.total > self.last:
            self.said = time.monotonic()
            line = f"{self.label}: {self.unit} {step}/{self.total}"
            if step > self.start:  # before, nothing is known
                left = (self.said - self.began) / (step - self.start) * (self.total - step)
                line += f", {text}, {duration(left)} left"
            sys.stderr.write(line + "\n")
        self.last = step

    def _text(self, step: int, loss: float | None, pairing: float | None) -> str:
        speed = (step - self.start) / max(1e-9, time.monotonic() - self.began)
        parts = [f"{speed:.3g} {self.unit}s/s"]
        if loss is not None:
            parts.insert(0, f"loss {loss:.4f}")
        if pairing is not None:
            parts.append(f"pairing {pairing:.1%}")
        return ", ".join(parts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Seconds in words: ``45 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
