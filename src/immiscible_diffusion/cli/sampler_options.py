"""Options of the commands that sample a trained run: what they change of the recipe's sampler."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.utils.checks import FiniteFloat, Fraction, PositiveFloat, PositiveInt

ONLY = {"spacing": ("ddim", "ddpm", "dpm"), "eta": ("ddim",), "clip": ("ddim", "ddpm"), "tolerance": ("dopri5",)}
"""Options that other methods ignore."""


@dataclass(frozen=True, kw_only=True)
class SamplerChanges:
    """What to change of the recipe's sampler; nothing by default.

    Args:
        method: sampler: euler, heun, midpoint or dopri5; on a VPPath also ddim, ddpm, dpm (DPM-Solver++) or pndm
            (Stable Diffusion's), on an EDMPath edm or consistency.
        sampling_steps: steps from noise to a sample; the recipe's by default.
        tolerance: relative and absolute tolerance of dopri5.
        init_noise: normal, N(0, I), or matched, the distribution of the noise that the run was trained on (measured
            now and kept in the run if it is not there).
        init_scale: factor of the initial noise.
        prune: reject initial noise along axes without data, in units of 1 / sqrt(D): 2.7 (measured now and kept in the
            run if it is not there).
        shift: above 1, euler, heun and midpoint take more steps near the noise.
        spacing: which of the path's steps ddim, ddpm and dpm take.
        eta: share of fresh noise in ddim, 0 to 1.
        clip: bound on predicted data in ddim and ddpm.
        guidance: weight of the labels or the text; 1 is none.
    """

    method: str | None = None
    sampling_steps: PositiveInt | None = None
    tolerance: PositiveFloat | None = None
    init_noise: str | None = None
    init_scale: PositiveFloat | None = None
    prune: PositiveFloat | None = None
    shift: PositiveFloat | None = None
    spacing: Literal["linear", "quadratic", "trailing"] | None = None
    eta: Fraction | None = None
    clip: PositiveFloat | None = None
    guidance: FiniteFloat | None = None

    def of(self, default: SamplerConfig) -> SamplerConfig:
        """Return ``default``, changed where options say so; ValueError where they do not fit."""
        names = [field.name for field in dataclasses.fields(SamplerChanges)]
        changes: dict[str, Any] = {n: v for n in names if (v := getattr(self, n)) is not None}
        steps = changes.pop("sampling_steps", default.steps)
        sampler = dataclasses.replace(default, steps=steps, **changes)
        for name, methods in ONLY.items():
            if name in changes and sampler.method not in methods:
                raise ValueError(
                    f"{name} means something in {' and '.join(methods)} only, and the sampler is "
                    f"{sampler.method}; leave it out, or give --method"
                )
        return sampler
