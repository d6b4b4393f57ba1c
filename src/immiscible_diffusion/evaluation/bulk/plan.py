"""Which pictures are to be made, what they are called, and who makes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STRANGE = re.compile(r"[^A-Za-z0-9]+")
LONGEST = 60  # letters of a class in a file name: a tar header has room for 100


@dataclass(frozen=True)
class Plan:
    """``count`` pictures; picture i is of class i mod the number of classes.

    So any number of pictures is spread evenly over the classes, in their order, and more pictures
    can be asked for later: those that are there stay what they are.

    Args:
        count: pictures in all, over all processes.
        classes: names of the classes, or prompts; None for a model without conditions.
    """

    count: int
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.classes is not None and not len(self.classes):
            raise ValueError("there are no classes to make pictures of")

    def text(self, row: int) -> str | None:
        """The class of a picture."""
        return None if self.classes is None else self.classes[row % len(self.classes)]

    def file_name(self, row: int) -> str:
        """``{class}_{i}.png``, of plain letters; names may repeat, as ImageNet's do: i does not."""
        text = self.text(row)
        if text is None:
            return f"{row:06d}.png"
        plain = _STRANGE.sub("-", text).strip("-")[:LONGEST] or "class"
        return f"{plain}_{row:06d}.png"

    def rows(self, unit: int, rank: int = 0, world: int = 1) -> list[int]:
        """The pictures of a process: of units of ``unit`` pictures every world-th.

        A function of the numbers alone: what is there already does not change who makes what.
        """
        if not 0 <= rank < world or unit < 1:
            raise ValueError(
                f"expected 0 <= rank < world and unit >= 1, got {rank}, {world}, {unit}"
            )
        return [row for row in range(self.count) if row // unit % world == rank]
