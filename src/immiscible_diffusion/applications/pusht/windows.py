"""Recorded episodes, and the windows of observations and actions that a policy learns from.

After Diffusion Policy (arXiv 2303.04137): at every time a policy observes the last ``n_obs_steps``
states and predicts ``horizon`` actions, the first of them that of the first observation. Of these
it carries out ``n_action_steps``, from the last observation on.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig
from immiscible_diffusion.applications.pusht.normalization import PolicyNormalizer
from immiscible_diffusion.data.base import DataSet, forward
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

OBSERVATION = "observation"


@dataclass(frozen=True, eq=False)
class Episodes:
    """Recorded episodes, one after the other, in the units they were recorded in.

    ValueError names the episode of rows that do not fit together or are not finite, or that has none.
    """

    observation: Tensor  # ``[N, O]`` float32
    action: Tensor  # ``[N, A]`` float32; row i is the target that was set where row i was observed
    ends: Tensor  # ``[E]`` int64: episode e has the rows from ``ends[e - 1]`` (0) to ``ends[e]``
    name: str = "episodes"  # for reports
    note: str = ""  # what every result on them must mention
    obs_type: str = ""  # how the simulator makes such observations (``states.observe``)
    numbers: Tensor | None = None  # ``[E]``: that of every episode in its store; None = 0, 1, ...

    def __post_init__(self) -> None:
        ends = self.ends
        if ends.ndim != 1 or ends.is_floating_point() or len(ends) == 0:
            shape = tuple(ends.shape)
            raise ValueError(f"{self.name}: ends must be integers [E], got {ends.dtype} {shape}")
        if len(empty := (self.lengths < 1).nonzero()):
            number, end = self.number(empty[0]), int(ends[empty[0]])
            raise ValueError(f"{self.name}: episode {number} has no steps: it ends at row {end}")
        for what, rows in ((OBSERVATION, self.observation), ("action", self.action)):
            if rows.ndim != 2 or not rows.is_floating_point() or 0 in rows.shape:
                shape = tuple(rows.shape)
                raise ValueError(f"{self.name}: {what} must be floating [N, dim], got {rows.dtype} {shape}")
            if len(rows) != int(ends[-1]):
                episode = min(int((ends <= len(rows)).sum()), len(ends) - 1)
                raise ValueError(
                    f"{self.name}: episode {self.number(episode)} ends at row {int(ends[episode])},"
                    f" but there are {len(rows)} {what}s; is the store cut short? download it again"
                )
            if len(bad := (~rows.isfinite().all(dim=1)).nonzero()):
                row = int(bad[0])
                episode = int(torch.searchsorted(ends, row, right=True))
                raise ValueError(
                    f"{self.name}: the {what} of episode {self.number(episode)}, step "
                    f"{row - int(self.starts[episode])} is not finite: {rows[row].tolist()}; "
                    f"correct it, or leave the episode out"
                )

    def number(self, episode: int | Tensor) -> int:
        """Return the number in its store of the episode at index ``episode`` here."""
        return int(episode if self.numbers is None else self.numbers[episode])

    @property
    def lengths(self) -> Tensor:
        """``[E]``: number of steps of every episode."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))

    @property
    def starts(self) -> Tensor:
        """``[E]``: first row of every episode."""
        return self.ends - self.lengths

    def __len__(self) -> int:
        return len(self.ends)

    def select(self, episodes: Tensor) -> "Episodes":
        """Take the episodes at indices ``[n]``, in this order."""
        spans = zip(self.starts[episodes].tolist(), self.ends[episodes].tolist(), strict=True)
        rows = torch.cat([torch.arange(start, end) for start, end in spans])
        return dataclasses.replace(
            self,
            observation=self.observation[rows],
            action=self.action[rows],
            ends=self.lengths[episodes].cumsum(0),
            numbers=episodes if self.numbers is None else self.numbers[episodes],
        )

    def split(
        self, val_ratio: float = 0.02, *, seed: int = 42, max_train_episodes: int | None = None
    ) -> tuple["Episodes", "Episodes"]:
        """Split into training and validation episodes, by the seed and their number alone.

        ``val_ratio`` of the episodes, at least one, are validated on, and at most ``max_train_episodes`` of the rest
        trained on; Diffusion Policy takes 90 of 206. ValueError if nothing is left.
        """
        count, limit = max(1, round(val_ratio * len(self))), max_train_episodes
        if not 0 < val_ratio < 1 or count >= len(self) or (limit is not None and limit < 1):
            raise ValueError(
                f"{self.name}: cannot validate on {val_ratio} of {len(self)} episodes and train on "
                f"{limit or 'the rest'}; at least one is needed on each side"
            )
        order = torch.randperm(len(self), generator=keyed_generator(seed, "episodes"))
        train = order[count:] if limit is None else order[count : count + limit]
        return self.select(train.sort().values), self.select(order[:count].sort().values)


@dataclass(frozen=True, eq=False)
class Windows(DataSet):
    """All windows of the episodes: a data set of normalized actions given observations.

    Windows overhang their episode by at most ``n_obs_steps - 1`` steps before and
    ``n_action_steps - 1`` after (pad_before and pad_after of Diffusion Policy), so that every step
    is predicted once. There they repeat the first or last step.

    A batch has ``data`` ``[B, horizon, A]`` in [-1, 1], ``cond["observation"]`` ``[B, n_obs_steps * O]``, and ``mask``
    ``[B, horizon, 1]`` or None. ValueError names an episode shorter than the horizon.
    """

    episodes: Episodes
    normalizer: PolicyNormalizer  # fitted on the training episodes
    config: DemonstrationConfig = field(default_factory=DemonstrationConfig)  # how they are cut
    validation: "Windows | None" = None  # those of the episodes to validate on

    def __post_init__(self) -> None:
        horizon, lengths = self.config.horizon, self.episodes.lengths
        if len(short := (lengths < horizon).nonzero()):
            raise ValueError(
                f"{self.name}: episode {self.episodes.number(short[0])} has {int(lengths[short[0]])} steps, fewer "
                f"than the horizon of {horizon}; leave it out (Episodes.select), or set a shorter horizon"
            )
        for what in (OBSERVATION, "action"):
            size = getattr(self.episodes, what).shape[1]
            if size != (due := len(getattr(self.normalizer, what).low)):
                raise ValueError(f"{self.name}: {what}s have {size} dimensions, not {due}")

    @classmethod
    def fit(cls, episodes: Episodes, config: DemonstrationConfig | None = None) -> "Windows":
        """Cut windows, with a normalizer fitted on these episodes (``PolicyNormalizer.fit``)."""
        config = config or DemonstrationConfig()
        rows = episodes.observation, episodes.action, episodes.starts
        return cls(episodes, PolicyNormalizer.fit(*rows, differences=config.differences), config)

    name = forward("episodes.name")
    note = forward("episodes.note")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the actions of one window: ``(horizon, A)``."""
        return (self.config.horizon, self.episodes.action.shape[1])

    @property
    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the conditions of one sample."""
        return {OBSERVATION: (self.config.n_obs_steps * self.episodes.observation.shape[1],)}

    def __len__(self) -> int:
        return self._starts.shape[1]

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the windows at ``indices`` ``[B]``; nothing is augmented."""
        first, episode = self._starts[:, indices]
        unclamped = first[:, None] + torch.arange(self.config.horizon)
        low, high = self.episodes.starts[episode], self.episodes.ends[episode] - 1
        rows = unclamped.clamp(low[:, None], high[:, None])
        observations = self.episodes.observation[rows[:, : self.config.n_obs_steps]]
        mask = (rows == unclamped)[..., None] if self.config.do_mask_loss_for_padding else None
        cond = {OBSERVATION: self.normalizer.observations(observations)}
        return Batch(self._action[rows], cond, mask)

    def complete_rows(self) -> Tensor:
        """The windows without repeated steps, as are all that a policy predicts."""
        first, episode = self._starts
        starts, ends = self.episodes.starts[episode], self.episodes.ends[episode]
        return ((first >= starts) & (first + self.config.horizon <= ends)).nonzero()[:, 0]

    @cached_property
    def digest(self) -> str:
        """Hash of the windows' content: 16 hex digits."""
        content = hashlib.sha256(repr(dataclasses.replace(self.config, path=None)).encode())
        recorded = self.episodes.observation, self.episodes.action, self.episodes.ends
        for rows in (*recorded, *self.normalizer.tensors().values()):
            content.update(rows.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    @cached_property
    def _starts(self) -> Tensor:
        """``[2, windows]``: row of the first action, before its episode in some, and episode."""
        overhang = self.config.n_obs_steps - 1 + self.config.n_action_steps - 1
        count = self.episodes.lengths - self.config.horizon + 1 + overhang
        episode = torch.arange(len(count)).repeat_interleave(count)
        within = torch.arange(len(episode)) - (count.cumsum(0) - count)[episode]
        return torch.stack([self.episodes.starts[episode] + within - self.config.n_obs_steps + 1, episode])

    @cached_property
    def _action(self) -> Tensor:
        return self.normalizer.action.normalize(self.episodes.action)
