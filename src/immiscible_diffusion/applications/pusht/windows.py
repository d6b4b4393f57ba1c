"""Demonstrations of a robot, and the windows of observations and actions that a policy learns from.

After Diffusion Policy (arXiv 2303.04137): at time s a policy sees the last ``observations`` and
plans ``horizon`` actions, the first of them that of the first observation; of these ``execute`` are
carried out, from the last observation on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.applications.pusht.normalization import MinMax, load_ranges, save_ranges
from immiscible_diffusion.applications.pusht.observation_normalizer import Sight
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

OBSERVATION = "observation"


@dataclass(frozen=True, eq=False)
class Episodes:
    """Recorded episodes, one after the other, in the units they were recorded in.

    Attributes:
        observation: ``[N, O]`` float32.
        action: ``[N, A]`` float32; row i is what was asked for where row i was observed.
        ends: ``[E]`` int64, rising: episode e has the rows from ``ends[e - 1]`` (0) to ``ends[e]``.
        name: for reports.
        note: what every figure made on them must say; may be empty.
        kind: how a simulator makes such observations of its states; may be empty.

    Raises:
        ValueError: rows that do not fit together, empty episodes, or numbers that are not finite:
            it names the episode.
    """

    observation: Tensor
    action: Tensor
    ends: Tensor
    name: str = "episodes"
    note: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        for what, rows in ((OBSERVATION, self.observation), ("action", self.action)):
            if rows.ndim != 2 or not rows.is_floating_point() or 0 in rows.shape:
                raise ValueError(
                    f"{self.name}: {what} must be floating [N, dim], got {rows.dtype} "
                    f"{tuple(rows.shape)}, so nothing can be read from episode 0 on"
                )
        self._check_ends()
        for what, rows in ((OBSERVATION, self.observation), ("action", self.action)):
            bad = (~rows.isfinite().all(dim=1)).nonzero()
            if len(bad):
                episode, step = self.place(int(bad[0]))
                raise ValueError(
                    f"{self.name}: the {what} of episode {episode}, step {step} is not finite: "
                    f"{rows[int(bad[0])].tolist()}; mend it, or leave the episode out"
                )

    def _check_ends(self) -> None:
        ends = self.ends
        if ends.ndim != 1 or ends.is_floating_point() or len(ends) == 0:
            raise ValueError(
                f"{self.name}: ends must be whole numbers [E], got {ends.dtype} {tuple(ends.shape)}"
            )
        empty = (self.lengths < 1).nonzero()
        if len(empty):
            raise ValueError(
                f"{self.name}: episode {int(empty[0])} has no steps (ends must rise, got "
                f"{int(ends[int(empty[0])])})"
            )
        rows = {"observations": len(self.observation), "actions": len(self.action)}
        for what, count in rows.items():
            cut = (ends > count).nonzero()
            if len(cut):
                raise ValueError(
                    f"{self.name}: episode {int(cut[0])} ends at row {int(ends[int(cut[0])])}, but "
                    f"there are {count} {what}: the store is cut short; fetch it again"
                )
            if count != int(ends[-1]):
                raise ValueError(
                    f"{self.name}: there are {count} {what}, and the last episode "
                    f"({len(ends) - 1}) ends at row {int(ends[-1])}; they must be as many"
                )

    @property
    def lengths(self) -> Tensor:
        """``[E]``: steps of every episode."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))

    @property
    def starts(self) -> Tensor:
        """``[E]``: first row of every episode."""
        return self.ends - self.lengths

    def place(self, row: int) -> tuple[int, int]:
        """Episode and step within it of a row."""
        episode = int(torch.searchsorted(self.ends, row, right=True))
        return episode, row - int(self.starts[episode])

    def __len__(self) -> int:
        return len(self.ends)

    def only(self, episodes: Tensor) -> "Episodes":
        """Some of the episodes ``[n]``, in this order."""
        spans = zip(self.starts[episodes].tolist(), self.ends[episodes].tolist(), strict=True)
        rows = torch.cat([torch.arange(start, end) for start, end in spans])
        ends = self.lengths[episodes].cumsum(0)
        return replace(
            self, observation=self.observation[rows], action=self.action[rows], ends=ends
        )

    def split(
        self, validation: float = 0.02, *, seed: int = 42, limit: int | None = None
    ) -> tuple["Episodes", "Episodes"]:
        """Episodes to train on and to validate on: a function of the seed and their number alone.

        Args:
            validation: share of episodes held out, at least one.
            seed: of the choice.
            limit: train on so many of the rest; Diffusion Policy takes 90 of 206.

        Raises:
            ValueError: nothing would be left to train on.
        """
        held = max(1, round(validation * len(self)))
        if not 0 < validation < 1 or held >= len(self) or (limit is not None and limit < 1):
            raise ValueError(
                f"{self.name}: cannot hold out {validation} of {len(self)} episodes and train on "
                f"{limit or 'the rest'}; at least one is needed on each side"
            )
        order = torch.randperm(len(self), generator=keyed_generator(seed, "episodes"))
        train = order[held:] if limit is None else order[held : held + limit]
        return self.only(train.sort().values), self.only(order[:held].sort().values)


@dataclass(frozen=True, eq=False)
class Windows(DataSet):
    """Every window of the episodes: a data set of normalized actions given observations.

    Windows overhang their episode by at most ``observations - 1`` steps before and ``execute - 1``
    after (pad_before and pad_after of Diffusion Policy), so that every step is planned for once.
    There they hold copies of the first or last step, which ``mask`` marks as not valid: pairing and
    masked losses leave them out. With ``learn_copies`` there is no mask, and a policy learns to
    stand still in the end, as Diffusion Policy has it.

    A batch has ``data`` ``[B, horizon, A]`` in [-1, 1], ``cond["observation"]``
    ``[B, observations * O]``, and ``mask`` ``[B, horizon, 1]``.

    Args:
        episodes: what was recorded.
        sight: how observations are told to the network, fitted on the episodes to train on.
        acted: range of the actions.
        horizon: actions of a plan.
        observations: that a policy sees.
        execute: actions carried out.
        learn_copies: treat copies as data.

    Raises:
        ValueError: an episode shorter than the horizon, or ranges of other dimensions; it names the
            episode.
    """

    episodes: Episodes
    sight: Sight
    acted: MinMax
    horizon: int = 16
    observations: int = 2
    execute: int = 8
    learn_copies: bool = False

    def __post_init__(self) -> None:
        h, o, e = self.horizon, self.observations, self.execute
        if min(h, o, e) < 1 or o - 1 + e > h:
            raise ValueError(
                f"expected horizon >= observations - 1 + execute, all >= 1; got {h}, {o} and {e}"
            )
        short = (self.episodes.lengths < h).nonzero()
        if len(short):
            episode = int(short[0])
            raise ValueError(
                f"{self.name}: episode {episode} has {int(self.episodes.lengths[episode])} steps, "
                f"fewer than the horizon of {h}; leave it out (Episodes.only), or plan fewer"
            )
        sizes = {OBSERVATION: (self.sight.observed, self.episodes.observation)}
        sizes["action"] = (self.acted, self.episodes.action)
        for what, (span, rows) in sizes.items():
            if len(span.low) != rows.shape[1]:
                raise ValueError(
                    f"{self.name}: the {what} of episode 0 has {rows.shape[1]} dimensions, "
                    f"{len(span.low)} were expected"
                )

    @classmethod
    def of(cls, episodes: Episodes, *, differences: bool = False, **sizes: int | bool) -> "Windows":
        """Windows with the ranges of these very episodes; ``differences``: see ``Sight``."""
        sight = Sight.fit(episodes.observation, episodes.starts, differences=differences)
        return cls(episodes, sight, MinMax.fit(episodes.action), **sizes)  # type: ignore[arg-type]

    def like(self, episodes: Episodes) -> "Windows":
        """Windows of other episodes, cut and normalized as these."""
        return replace(self, episodes=episodes)

    @property
    def name(self) -> str:
        """Of the episodes."""
        return self.episodes.name

    @property
    def note(self) -> str:
        """Of the episodes."""
        return self.episodes.note

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one window of actions: ``(horizon, A)``."""
        return (self.horizon, self.episodes.action.shape[1])

    @property
    def ranges(self) -> dict[str, MinMax]:
        """All that normalization needs, to be saved with a model (``save_ranges``)."""
        return {**self.sight.ranges, "acted": self.acted}

    def save_normalization(self, path: Path) -> None:
        """Write ``ranges`` to ``path`` (safetensors)."""
        save_ranges(path, self.ranges)

    def check_normalization(self, path: Path) -> None:
        """Raise ValueError if ``path`` holds ranges of other demonstrations."""
        if load_ranges(path) != self.ranges:
            raise ValueError(
                f"the demonstrations have changed: their ranges differ from those in {path}, which "
                f"the policy was trained on; set data.path back, or train again"
            )

    @property
    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the conditions of one sample."""
        return {OBSERVATION: (self.observations * self.episodes.observation.shape[1],)}

    def __len__(self) -> int:
        return int(self._count.sum())

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The windows at ``indices`` ``[B]``; nothing is augmented."""
        rows, inside = self._rows(indices)
        seen = self.sight(self.episodes.observation[rows[:, : self.observations]])
        mask = None if self.learn_copies else inside[..., None]
        return Batch(self._action[rows], {OBSERVATION: seen}, mask)

    @property
    def whole(self) -> Tensor:
        """``[n]``: the windows that lie within their episode, as every plan of a policy does."""
        first, episode = self._first
        ends = self.episodes.ends[episode]
        inside = (first >= self.episodes.starts[episode]) & (first + self.horizon <= ends)
        return inside.nonzero()[:, 0]

    def complete_rows(self) -> Tensor:
        """The windows within their episode."""
        return self.whole

    def place(self, index: int) -> tuple[int, int]:
        """Episode, and step of the last observation, of window ``index``."""
        first = torch.tensor([index])
        episode = torch.searchsorted(self._count.cumsum(0), first, right=True)
        before = self._count.cumsum(0)[episode] - self._count[episode]
        return int(episode), index - int(before)

    @property
    def _count(self) -> Tensor:
        """``[E]``: windows of every episode."""
        overhang = self.observations - 1 + self.execute - 1
        return self.episodes.lengths - self.horizon + 1 + overhang

    @cached_property
    def _first(self) -> Tensor:
        """``[windows]``: row of the first action (before its episode in some), then its episode."""
        count, starts = self._count, self.episodes.starts
        episode = torch.arange(len(count)).repeat_interleave(count)
        within = torch.arange(int(count.sum())) - (count.cumsum(0) - count)[episode]
        return torch.stack([starts[episode] + within - (self.observations - 1), episode])

    def _rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``[B, horizon]``, held within the episode, and which needed no holding."""
        first, episode = self._first[:, indices]
        rows = first[:, None] + torch.arange(self.horizon)
        low, high = self.episodes.starts[episode], self.episodes.ends[episode] - 1
        held = rows.clamp(low[:, None], high[:, None])
        return held, held == rows

    @cached_property
    def _action(self) -> Tensor:
        return self.acted.apply(self.episodes.action)
