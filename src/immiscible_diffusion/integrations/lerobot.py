"""Couplings in LeRobot's policies, without a fork.

Diffusion Policy draws its noise inside ``compute_loss``; SmolVLA and pi0 normalize, pad actions to a common dimension
and draw their noise inside ``forward``. Written for 7427f318 (0.6.2); torch alone is imported here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling, as_coupling
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.integrations.alignment import pull

PADDED = "action_is_pad"
STATE, OBSERVATION = "observation.state", "observation"
Batch = Mapping[str, Any]


@torch.no_grad()
def pair_actions(
    coupling: Coupling,
    actions: Tensor,
    batch: Batch,
    *,
    dims: int | None = None,
    noise: Tensor | None = None,
    do_mask_loss_for_padding: bool = True,
    cond: dict[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise for actions as the policy diffuses them, normalized and padded: float32 ``[B, T, A]``.

    Steps beyond the episode and dimensions that the robot does not have count in no distance; there noise is N(0, I)
    with ``KNN``.

    Args:
        coupling: pairs; it must take a mask.
        actions: ``[B, T, A]``.
        batch: the policy's batch; ``batch["action_is_pad"]`` ``[B, T]`` is True beyond the episode.
        dims: dimensions of an action of this robot; those from there on are padding. None = all.
        noise: ``[B, T, A]`` of your own, where the coupling can start from it.
        do_mask_loss_for_padding: whether the policy's loss leaves out the steps beyond the episode, copies of the last
            action. If it counts them, so does the distance, and no ``action_is_pad`` is needed.
        cond: conditions of the data, for couplings that use some.
        generator: on the device of ``actions``.

    Raises:
        ValueError: ``action_is_pad`` is missing (copies and padding would be paired like actions) or not boolean, or
            ``dims`` is out of range.
    """
    valid = _valid(actions, batch, dims, do_mask_loss_for_padding)
    return _pair(as_coupling(coupling), actions, noise, cond, valid, generator)


def _pair(
    coupling: Coupling,
    actions: Tensor,
    noise: Tensor | None,
    cond: dict[str, Tensor] | None,
    valid: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    rows = actions.float()
    if noise is None:
        return coupling(rows, cond=cond, mask=valid, generator=generator)
    return coupling.pair(rows, noise.float(), cond=cond, mask=valid, generator=generator)


def _valid(actions: Tensor, batch: Batch, dims: int | None, mask_padding: bool) -> Tensor:
    """``[B, T, A]`` boolean: True for the dimensions of this robot, within the episode."""
    if not isinstance(actions, Tensor) or actions.ndim != 3 or not actions.is_floating_point():
        shape = tuple(actions.shape) if isinstance(actions, Tensor) else type(actions).__name__
        raise ValueError(f"actions must be a floating-point tensor [B, T, A], got {shape}")
    size = actions.shape[2]
    dims = size if dims is None else dims
    if not 1 <= dims <= size:
        raise ValueError(f"dims must be from 1 to {size}, the size of actions, got {dims}")
    inside = (torch.arange(size, device=actions.device) < dims).expand(actions.shape)
    if not mask_padding:
        return inside
    padded = batch.get(PADDED)
    if padded is None:
        raise ValueError(
            f"the batch has no '{PADDED}', without which copies beyond the end of an episode would "
            f"be paired like actions; load it with delta_timestamps for 'action', or give "
            f"do_mask_loss_for_padding=False if the loss counts them"
        )
    if not isinstance(padded, Tensor) or padded.dtype != torch.bool:
        kind = padded.dtype if isinstance(padded, Tensor) else type(padded).__name__
        raise ValueError(f"'{PADDED}' must be a boolean tensor, True beyond the episode, got {kind}")
    if padded.shape != actions.shape[:2]:
        raise ValueError(f"'{PADDED}' must be {tuple(actions.shape[:2])} like actions, got {tuple(padded.shape)}")
    return inside & ~padded.to(actions.device).unsqueeze(-1)


@torch.no_grad()
def matched_noise(
    distribution: NoiseDistribution, count: int, *, size: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Noise ``[count, T, size]`` with the moments that a policy was trained on, to sample from.

    ``policy.select_action(batch, noise=matched_noise(distribution, len(state)))``. The ``distribution`` is measured on
    complete windows ``[T, A]``, ``NoiseDistribution.measure``; ``size`` is what actions are padded to (None = A),
    noise there is N(0, I); the ``generator`` is on the CPU.
    """
    steps, dims = distribution.shape
    size = dims if size is None else size
    if size < dims or count < 1:
        raise ValueError(f"expected count >= 1 and size >= {dims}, got {count} and {size}")
    noise = torch.randn(count, steps, size, generator=generator)
    noise[..., :dims] = distribution.color(noise[..., :dims].contiguous())
    return noise


def pair_lerobot(
    policy: Any,
    coupling: Coupling,
    *,
    do_mask_loss_for_padding: bool | None = None,
    conditions: Callable[[Batch], dict[str, Tensor] | None] | None = None,
) -> "PairedPolicy":
    """Let ``policy`` train on paired noise from now on; evaluation and inference stay as they are.

    ``paired = pair_lerobot(policy, KNN(k=2))``, before the training loop; ``paired.pull`` is a number to log,
    ``paired.remove()`` undoes it. Weights and their names stay as they are.

    Args:
        policy: LeRobot's ``DiffusionPolicy``, ``SmolVLAPolicy``, ``PI0Policy``, or one built like them:
            ``policy.diffusion.compute_loss(batch)`` with a ``noise_scheduler.add_noise``, or
            ``policy.prepare_action(batch)`` and ``policy.model.sample_noise(shape, device)``.
        coupling: pairs; for a Diffusion Policy it must be able to start from its noise.
        do_mask_loss_for_padding: see ``pair_actions``. None: that of a Diffusion Policy's config; True for the others.
        conditions: makes the conditions of the coupling from a batch; by default the robot's state as
            ``cond["observation"]``, where there is one.

    Raises:
        ValueError: a policy of another structure, or one that is paired already.
    """
    if isinstance(getattr(policy, "_immiscible", None), PairedPolicy):
        raise ValueError("this policy is paired already; remove() that first")
    diffusion: Any = getattr(policy, "diffusion", None)
    if callable(getattr(diffusion, "compute_loss", None)):
        if do_mask_loss_for_padding is None:
            do_mask_loss_for_padding = diffusion.config.do_mask_loss_for_padding
        pair = PairedPolicy._in_diffusion
    elif callable(getattr(policy, "prepare_action", None)) and hasattr(getattr(policy, "model", None), "sample_noise"):
        pair = PairedPolicy._in_flow
    else:
        raise ValueError(
            f"{type(policy).__name__} is built like neither Diffusion Policy (diffusion.compute_loss) nor SmolVLA and "
            "pi0 (prepare_action, model.sample_noise); call pair_actions where it draws its noise"
        )
    paired = PairedPolicy(policy, as_coupling(coupling), do_mask_loss_for_padding is not False, conditions or _state)
    pair(paired)
    object.__setattr__(policy, "_immiscible", paired)
    return paired


def _state(batch: Batch) -> dict[str, Tensor] | None:
    state = batch.get(STATE)
    return {OBSERVATION: state.reshape(len(state), -1).float()} if isinstance(state, Tensor) else None


@dataclass(eq=False)
class PairedPolicy:
    """A policy whose noise is paired; see ``pair_lerobot``."""

    policy: Any
    coupling: Coupling
    mask_padding: bool
    conditions: Callable[[Batch], dict[str, Tensor] | None]
    _pull: Tensor | None = None
    _now: tuple[Tensor, Batch] | None = None  # actions and batch whose noise is drawn next
    _undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def pull(self) -> float | None:
        """How far the noise of the last step leans to its actions (see ``pull``), to log."""
        return None if self._pull is None else float(self._pull)

    def remove(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()
        object.__setattr__(self.policy, "_immiscible", None)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        """Over what the class has; of an attribute of the object itself, that is kept."""
        if name in vars(owner):
            self._undo.append(partial(object.__setattr__, owner, name, vars(owner)[name]))
        else:
            self._undo.append(partial(object.__delattr__, owner, name))
        object.__setattr__(owner, name, value)

    @torch.no_grad()
    def _noise(self, dims: int | None, noise: Tensor | None) -> Tensor:
        assert self._now is not None
        (actions, batch), self._now = self._now, None
        valid = _valid(actions, batch, dims, self.mask_padding)
        paired = _pair(self.coupling, actions, noise, self.conditions(batch), valid)
        self._pull = pull(actions.float(), paired, mask=valid).mean()
        return paired

    def _in_diffusion(self) -> None:
        """Noise is drawn by the loss, and goes into mixture and target: it is changed in place."""
        inner = self.policy.diffusion
        compute_loss = inner.compute_loss

        def paired_loss(batch: Batch) -> Tensor:
            self._now = (batch["action"], batch) if self.policy.training else None
            try:
                loss: Tensor = compute_loss(batch)
            finally:
                missed, self._now = self._now is not None, None
            if missed:
                raise ValueError("compute_loss did not call noise_scheduler.add_noise: not paired")
            return loss

        self._set(inner, "noise_scheduler", _PairingScheduler(inner.noise_scheduler, self))
        self._set(inner, "compute_loss", paired_loss)

    def _in_flow(self) -> None:
        """Actions are prepared, then noise is drawn of their shape."""
        prepare, sample, config = self.policy.prepare_action, self.policy.model.sample_noise, self.policy.config
        feature = getattr(config, "action_feature", None) or config.output_features["action"]

        def prepared(batch: Batch) -> Tensor:
            actions: Tensor = prepare(batch)
            self._now = (actions, batch) if self.policy.training else None
            return actions

        def sampled(shape: Any, device: Any) -> Tensor:
            noise: Tensor = sample(shape, device)
            if self._now is None or not self.policy.training:
                return noise
            return self._noise(int(feature.shape[0]), noise if self.coupling.takes_noise else None).to(noise)

        self._set(self.policy, "prepare_action", prepared)
        self._set(self.policy.model, "sample_noise", sampled)


class _PairingScheduler:
    """A noise scheduler that pairs the noise it is about to add, once a loss."""

    def __init__(self, scheduler: Any, paired: PairedPolicy) -> None:
        self._scheduler, self._paired = scheduler, paired

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for while this is being copied, before it has a scheduler
            raise AttributeError(name)
        return getattr(self._scheduler, name)

    def add_noise(self, data: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self._paired._now is not None:
            if noise.requires_grad:
                raise ValueError("the noise of the loss requires grad; it cannot be paired")
            noise.copy_(self._paired._noise(None, noise))  # the target is of it too
        return self._scheduler.add_noise(data, noise, timesteps)
