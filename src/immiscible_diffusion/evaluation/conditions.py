"""What samples are asked to show: row i depends on i alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.prompts import ClassNamePrompts
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.condition_dropout import drop_labels, drop_text
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.load import alike
from immiscible_diffusion.training.pixels import Pixels
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.random import keyed_generator


@dataclass(frozen=True)
class Told:
    """The conditions of samples.

    Row i is of prompt i mod their number where prompts are given, else of class i mod the number of
    classes, else of the caption of sample i mod their number; one that paints gets picture i of
    the data, with its caption or class, and a hole keyed by i.

    Args:
        recipe: whether the network is conditional, and by what.
        dataset: classes, captions, and pictures to paint in.
        device: where the network is.
        codec: of the recipe.
        prompts: instead of what the data say.
    """

    recipe: Recipe
    dataset: DataSet
    device: torch.device | str = "cpu"
    codec: Codec = field(default_factory=Pixels)
    prompts: Sequence[str] = ()

    def __call__(self, rows: Sequence[int]) -> Cond | None:
        """Conditions of ``rows``, None for an unconditional network."""
        if not self.recipe.conditional:
            return None
        if not self.recipe.by_text or not isinstance(self.codec, LatentCodec):
            return self.labels(rows)
        shape = self.codec.shape(self.dataset.shape)
        size = (shape[1] * self.codec.shrinks, shape[2] * self.codec.shrinks)
        cond = {**self.codec.tell(self.texts(rows), size), **(self.labels(rows) or {})}
        if self.codec.painting is not None:
            cond |= self._to_paint(rows, self.codec)
        return cond

    def labels(self, rows: Sequence[int]) -> Cond | None:
        """Row i is of class i mod their number; None without classes."""
        classes = self.dataset.num_classes
        if not classes or (self.prompts and self.recipe.by_text):
            return None
        if self._paints:  # a sample is painted in, so it is its class
            batch = self.dataset.batch(self._data(rows))
            return {"label": (batch.cond or {})["label"].to(self.device)}
        return {"label": torch.tensor([row % classes for row in rows], device=self.device)}

    def texts(self, rows: Sequence[int]) -> list[str]:
        """What is said for ``rows``."""
        if self.prompts:
            return [self.prompts[row % len(self.prompts)] for row in rows]
        assert isinstance(self.dataset, Captioned)
        said = self.dataset.prompts
        if self.dataset.num_classes and isinstance(said, ClassNamePrompts) and not self._paints:
            return [said.of_class(row % self.dataset.num_classes)[0] for row in rows]
        return self.dataset.texts(self._data(rows))

    @property
    def _paints(self) -> bool:
        return isinstance(self.codec, LatentCodec) and self.codec.painting is not None

    def without(self, cond: Cond) -> Cond:
        """The conditions that stand for none."""
        if "text" in cond and isinstance(self.codec, LatentCodec):
            return drop_text(cond, self.codec.nothing, 1.0)
        return drop_labels(cond, self.dataset.num_classes or 0, 1.0)

    def _data(self, rows: Sequence[int]) -> Tensor:
        """The data that ``rows`` are of."""
        same = alike(self.dataset)
        return same[torch.tensor([row % len(same) for row in rows])]

    def _to_paint(self, rows: Sequence[int], codec: LatentCodec) -> Cond:
        pictures = self.dataset.batch(self._data(rows)).data
        size = codec.shape(tuple(pictures.shape[1:]))[1:]
        assert codec.painting is not None
        holes: list[Tensor] = [
            codec.painting.holes(1, (size[0], size[1]), keyed_generator(row, "hole"))
            for row in rows
        ]
        return codec.hidden(pictures, torch.cat(holes))
