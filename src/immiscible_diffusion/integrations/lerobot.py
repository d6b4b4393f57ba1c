"""Couplings in LeRobot's policies, without a fork.

Diffusion Policy draws its noise inside ``compute_loss``; SmolVLA, pi0 and pi05 normalize, pad actions to a common
dimension and draw their noise inside ``forward``. Written for 7427f318 (0.6.2); torch alone is imported here.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    generator: torch.Generator | None = None,
) -> "PairedPolicy":
    """Let ``policy`` train on paired noise from now on; evaluation and inference stay as they are.

    ``paired = pair_lerobot(policy, KNN(k=2))``, before the training loop; ``paired.pull`` is a number to log,
    ``paired.remove()`` undoes it. Weights and their names stay as they are; a copy of the policy is paired too.

    Args:
        policy: LeRobot's ``DiffusionPolicy``, ``SmolVLAPolicy``, ``PI0Policy``, ``PI05Policy``, or one like them:
            ``policy.diffusion.compute_loss(batch)`` with a ``noise_scheduler.add_noise``, or
            ``policy.prepare_action(batch)`` and ``policy.model.sample_noise(shape, device)``.
        coupling: pairs; for a Diffusion Policy it must be able to start from its noise.
        do_mask_loss_for_padding: see ``pair_actions``. None: that of a Diffusion Policy's config; True for the others.
        conditions: makes the conditions of the coupling from a batch; by default the robot's state as
            ``cond["observation"]``, where there is one.
        generator: of what the coupling draws besides the policy's own noise, on the device of the actions. With one,
            times and dropout are those of an unpaired run.

    Raises:
        ValueError: a policy of another structure, or one that is paired already.
    """
    if getattr(policy, "_immiscible", None) is not None:
        raise ValueError("this policy is paired already; remove() that first")
    diffusion: Any = getattr(policy, "diffusion", None)
    dims = None
    if _has(diffusion, "compute_loss", "batch"):
        if do_mask_loss_for_padding is None:
            do_mask_loss_for_padding = diffusion.config.do_mask_loss_for_padding
    elif _has(policy, "prepare_action", "batch") and _has(
        getattr(policy, "model", None), "sample_noise", "shape", "device"
    ):
        feature = getattr(policy.config, "action_feature", None) or policy.config.output_features["action"]
        dims = int(feature.shape[0])
    else:
        raise ValueError(
            f"{type(policy).__name__} is built like neither Diffusion Policy (diffusion.compute_loss(batch)) nor "
            "SmolVLA, pi0 and pi05 (prepare_action(batch), model.sample_noise(shape, device)); call pair_actions "
            "where it draws its noise"
        )
    mask_padding = do_mask_loss_for_padding is not False
    paired = PairedPolicy(policy, as_coupling(coupling), mask_padding, conditions or _state, generator, dims)
    for owner, name in paired._replaced():
        if name in vars(owner):
            raise ValueError(f"{name} of this {type(owner).__name__} is replaced already, by {vars(owner)[name]!r}")
    for owner, name in paired._replaced():
        object.__setattr__(owner, name, getattr(paired, f"_{name}"))
    object.__setattr__(policy, "_immiscible", paired)
    return paired


def _has(owner: Any, name: str, *parameters: str) -> bool:
    """Whether the class of ``owner`` has a method of this name and these parameters."""
    method = getattr(type(owner), name, None)
    return callable(method) and [*inspect.signature(method).parameters][1:] == [*parameters]


def _state(batch: Batch) -> dict[str, Tensor] | None:
    state = batch.get(STATE)
    return {OBSERVATION: state.reshape(len(state), -1).float()} if isinstance(state, Tensor) else None


@dataclass(eq=False)
class PairedPolicy:
    """A policy whose noise is paired; see ``pair_lerobot``.

    Its methods stand in the policy in the place of the class's. Those are looked up at every call: a copy, which has
    a copy of this, calls its own.
    """

    policy: Any
    coupling: Coupling
    mask_padding: bool
    conditions: Callable[[Batch], dict[str, Tensor] | None]
    generator: torch.Generator | None
    dims: int | None  # of an action of this robot; None: a Diffusion Policy, without padding
    _pull: Tensor | None = None
    _now: tuple[Tensor, Batch] | None = None  # actions and batch whose noise is drawn next

    @property
    def pull(self) -> float | None:
        """How far the noise of the last step leans to its actions (see ``pull``), to log."""
        return None if self._pull is None else float(self._pull)

    def remove(self) -> None:
        """Put everything back."""
        for owner, name in [*self._replaced(), (self.policy, "_immiscible")]:
            vars(owner).pop(name, None)

    def _replaced(self) -> list[tuple[Any, str]]:
        policy = self.policy
        if self.dims is None:
            return [(policy.diffusion, "compute_loss"), (policy.diffusion.noise_scheduler, "add_noise")]
        return [(policy, "prepare_action"), (policy.model, "sample_noise")]

    @torch.no_grad()
    def _noise(self, noise: Tensor) -> Tensor:
        assert self._now is not None
        (actions, batch), self._now = self._now, None
        valid = _valid(actions, batch, self.dims, self.mask_padding)
        start = noise if self.coupling.takes_noise or self.dims is None else None
        paired = _pair(self.coupling, actions, start, self.conditions(batch), valid, self.generator)
        self._pull = pull(actions.float(), paired, mask=valid).mean()
        return paired

    def _compute_loss(self, batch: Batch) -> Tensor:
        """Noise is drawn by the loss, and goes into mixture and target: ``add_noise`` changes it in place."""
        diffusion = self.policy.diffusion
        self._now = (batch["action"], batch) if self.policy.training else None
        try:
            loss: Tensor = type(diffusion).compute_loss(diffusion, batch)
        finally:
            missed, self._now = self._now is not None, None
        if missed:
            raise ValueError("compute_loss did not call noise_scheduler.add_noise: not paired")
        return loss

    def _add_noise(self, data: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self._now is not None:
            if noise.requires_grad:
                raise ValueError("the noise of the loss requires grad; it cannot be paired")
            noise.copy_(self._noise(noise))  # the target is of it too
        scheduler = self.policy.diffusion.noise_scheduler
        return type(scheduler).add_noise(scheduler, data, noise, timesteps)

    def _prepare_action(self, batch: Batch) -> Tensor:
        """Actions are prepared, then noise is drawn of their shape."""
        actions: Tensor = type(self.policy).prepare_action(self.policy, batch)
        self._now = (actions, batch) if self.policy.training else None
        return actions

    def _sample_noise(self, shape: Any, device: Any) -> Tensor:
        model = self.policy.model
        noise: Tensor = type(model).sample_noise(model, shape, device)
        return noise if self._now is None or not self.policy.training else self._noise(noise).to(noise)
