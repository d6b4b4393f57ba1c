"""How samples of images, and policies, are judged, and when."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """At which training steps ``compare`` evaluates, and at which numbers of sampling steps.

    Args:
        sampling_steps: numbers of sampling steps, by the recipe's sampler.
        points: how many training steps, spaced evenly in their logarithm.
        first: the first of them, as a share of all steps.
        at: the training steps themselves, instead of ``points`` and ``first``; those beyond the
            end of training are left out, and the last step is always among them.
    """

    sampling_steps: tuple[int, ...] = (2, 5, 20, 100)
    points: int = 6
    first: float = 0.1
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.points < 1 or not 0 < self.first <= 1:
            raise ValueError(
                f"expected points >= 1 and 0 < first <= 1; got points={self.points}, "
                f"first={self.first}"
            )
        if not self.sampling_steps or min(self.sampling_steps) < 1:
            raise ValueError(
                f"sampling_steps must be numbers of steps >= 1, got {self.sampling_steps}"
            )
        if self.at and min(self.at) < 1:
            raise ValueError(f"at must be training steps >= 1, got {self.at}")

    def steps(self, total: int) -> tuple[int, ...]:
        """The training steps to evaluate at; the last is ``total``."""
        if self.at:
            return tuple(sorted({step for step in self.at if step < total} | {total}))
        shares = (self.first ** (1 - i / max(1, self.points - 1)) for i in range(self.points - 1))
        return tuple(sorted({max(1, round(total * share)) for share in shares} | {total}))


@dataclass(frozen=True)
class Evaluation(Schedule):
    """How samples are judged.

    Args:
        features: feature space: ``classifier``, ``pixels``, or of a pretrained network
            ``efficientnet``, ``inception`` (FID) or ``dinov2`` (FD-DINOv2); docs/evaluate.md.
        samples: images generated for every figure.
    """

    features: Literal["classifier", "pixels", "efficientnet", "inception", "dinov2"] = "classifier"
    samples: int = 10_000

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"evaluation.samples must be at least 2, got {self.samples}")
        super().__post_init__()

    def tiny(self) -> "Evaluation":
        """Of a smoke run."""
        return replace(self, samples=128, sampling_steps=(1, 2), points=2, first=0.5, at=())


@dataclass(frozen=True)
class PolicyEvaluation(Schedule):
    """How a policy is judged: on held-out demonstrations, and at work in the simulator.

    Args:
        episodes: of the simulator, from fixed starts; 0 = no simulator.
        windows: held-out windows that the error of actions is measured on.
        rollouts: at work at ``all`` evaluated training steps, or at the ``last`` alone.
        workers: processes of the simulator; 0 = in this one.
    """

    episodes: int = 50
    windows: int = 512
    rollouts: Literal["all", "last"] = "all"
    workers: int = 0
    sampling_steps: tuple[int, ...] = (10,)
    points: int = 5

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.windows < 1 or self.workers < 0:
            raise ValueError(
                f"expected episodes >= 0, windows >= 1 and workers >= 0, got {self.episodes}, "
                f"{self.windows} and {self.workers}"
            )
        if self.rollouts not in ("all", "last"):
            raise ValueError(f"rollouts must be all or last, got {self.rollouts!r}")
        super().__post_init__()

    def tiny(self) -> "PolicyEvaluation":
        """Of a smoke run."""
        return replace(
            self,
            episodes=min(2, self.episodes),
            windows=16,
            sampling_steps=(1, 2),
            points=2,
            first=0.5,
        )
