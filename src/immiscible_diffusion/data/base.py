"""What every data set offers to training, evaluation and analysis."""

from collections.abc import Generator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from immiscible_diffusion.data.sampler import KeyedSampler, Sampler, batches
from immiscible_diffusion.utils.batch import Batch


def forward(path: str) -> Any:
    """A property that reads the attribute at ``path``, such as ``images.name``."""
    return property(attrgetter(path))


class DataSet:
    """Samples addressed by index, so that their order is a function of the seed.

    A subclass gives ``name``, ``shape``, ``__len__`` and ``batch``, and whatever else differs from
    the defaults here: as a property, a field of a dataclass or a constant of the class.
    """

    if TYPE_CHECKING:  # dataclasses would take a property of a base class for a field's default

        @property
        def name(self) -> str:
            """Name for reports."""

        @property
        def shape(self) -> tuple[int, ...]:
            """Shape of one sample; where shapes differ, the most common one."""

    @property
    def note(self) -> str:
        """What every figure made of the data must say, such as "JPEG re-encoded"; may be empty."""
        return ""

    @property
    def num_classes(self) -> int | None:
        """Number of classes if batches carry ``cond["label"]`` (int64), else None."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One for each class, or None."""
        return None

    @property
    def labels(self) -> Tensor | None:
        """Labels ``[N]`` int64 of all samples, read without decoding them, or None."""
        return None

    @property
    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the conditions of one sample other than labels and text, by name."""
        return {}

    @property
    def is_encoded(self) -> bool:
        """Whether samples are latents, which a codec passes on as they are."""
        return False

    @property
    def digest(self) -> str | None:
        """Hash of the content, by which results are cached; None where it is unknown."""
        return None

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The samples at ``indices`` (``[B]`` int64, CPU); augmented iff a generator is given."""
        raise NotImplementedError

    @property
    def index_count(self) -> int:
        """How many different samples there are for training: mirror images are samples too."""
        return len(self)

    def indexed(self, index: Tensor) -> Batch:
        """The samples ``index`` ``[B]`` of ``index_count``, as batches name them."""
        return self.batch(index)

    def common_rows(self) -> Tensor:
        """Indices ``[n]`` of the samples that have ``shape``: all, except with aspect buckets."""
        return torch.arange(len(self))

    def complete_rows(self) -> Tensor:
        """Of ``common_rows``, those without padding: of actions, windows within their episode."""
        return self.common_rows()

    def sampler(self, batch_size: int, seed: int) -> Sampler:
        """The order of training: which samples each step gets."""
        return KeyedSampler(len(self), batch_size, seed)

    def batches(self, batch_size: int, seed: int, **options: int) -> Generator[Batch, None, None]:
        """The micro-batches of one rank; ``options`` as for ``sampler.batches``."""
        return batches(self, self.sampler(batch_size, seed), **options)

    def state_dict(self) -> dict[Any, Any]:
        """What ``batches`` needs, beside its arguments, to go on at a step: nothing, where samples are addressed."""
        return {}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Let ``batches`` go on from a ``state_dict``; of several ranks, load that of every one."""
