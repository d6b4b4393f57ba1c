"""Which sampler, and how many steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, EDMPath, Model, Path, Velocity, VPPath
from immiscible_diffusion.diffusion.samplers.base import SamplerOutput, StepNoise
from immiscible_diffusion.diffusion.samplers.ddpm import (
    Spacing,
    sample_ddim,
    sample_dpm,
    sample_pndm,
    select_timesteps,
)
from immiscible_diffusion.diffusion.samplers.edm import sample_consistency, sample_edm
from immiscible_diffusion.diffusion.samplers.ode import sample_dopri5, sample_euler, sample_heun, sample_midpoint
from immiscible_diffusion.utils.checks import FiniteFloat, Fraction, PositiveFloat, PositiveInt, check_fields

METHODS = {"euler": sample_euler, "heun": sample_heun, "midpoint": sample_midpoint}
OF_VP, OF_EDM = ("ddim", "ddpm", "dpm", "pndm"), ("edm", "consistency")
# The path that each other method needs; the ODE methods above can sample every path.
REQUIRED_PATH = {method: VPPath if method in OF_VP else EDMPath for method in (*OF_VP, *OF_EDM)}


@dataclass(frozen=True)
class SamplerConfig:
    """Which sampler, and how many steps.

    Args:
        method: ``euler``, ``heun``, ``midpoint`` or ``dopri5`` along the path's ODE (not ``heun`` of a VPPath, whose
            time is discrete); of a VPPath ``ddim``, ``ddpm``, ``dpm`` (DPM-Solver++) or ``pndm`` (of Stable
            Diffusion); of an EDMPath ``edm`` (Heun in sigma) or ``consistency``.
        steps: steps of all methods but ``dopri5``.
        tolerance: relative and absolute, for ``dopri5``.
        init_noise: the distribution to start from: ``normal``, N(0, I) as everyone does, or ``matched``, that of the
            noise the model was trained on (``NoiseDistribution``).
        spacing: which of the path's steps ``ddim``, ``ddpm`` and ``dpm`` take: ``linear``, ``quadratic`` or
            ``trailing``.
        eta: fresh noise in ``ddim``, 0 to 1; ``ddpm`` is 1.
        clip: predicted data are clamped to plus and minus this in ``ddim`` and ``ddpm``; of data before any image
            scaling.
        guidance: weight of the condition (2207.12598): 1 is none, above 1 pushes towards it.
        init_scale: factor of the noise to start from.
        prune: reject noise to start from whose cosine with an empty axis of the data (``EmptyAxes``, 2512.18184) is
            above ``prune / sqrt(D)``, for samples of D values.
        shift: ``t -> shift t / (1 + (shift - 1) t)`` of the times of ``euler``, ``heun`` and ``midpoint`` (2403.03206,
            eq. 23); above 1 takes more steps near the noise.
    """

    method: Literal["euler", "heun", "midpoint", "dopri5", "ddim", "ddpm", "dpm", "pndm", "edm", "consistency"] = (
        "euler"
    )
    steps: PositiveInt = 50
    tolerance: PositiveFloat = 1e-5
    init_noise: Literal["normal", "matched"] = "normal"
    spacing: Spacing = "trailing"
    eta: Fraction = 0.0
    clip: PositiveFloat | None = None
    guidance: FiniteFloat = 1.0
    init_scale: PositiveFloat = 1.0
    prune: PositiveFloat | None = None
    shift: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prune is not None and self.init_noise == "matched":
            raise ValueError("prune rejects noise of N(0, I), and init_noise is matched; use one of the two")

    def check(self, path: Path) -> None:
        """Raise ValueError unless this method can sample ``path`` in these steps."""
        if self.method == "heun" and isinstance(path, VPPath):
            raise ValueError(
                "heun is of first order where a path has steps, and its images are worse than "
                "euler's at twice the cost; use ddim, dpm or midpoint"
            )
        if self.shift != 1 and self.method not in METHODS:
            raise ValueError(
                f"shift {self.shift:g} moves the times of {', '.join(METHODS)}, and the method is {self.method}; "
                f"leave shift at 1"
            )
        if self.method == "pndm" and isinstance(path, VPPath) and path.prediction == "data":
            raise ValueError("pndm samples networks that predict epsilon or v, and this one predicts data; use ddim")
        required = REQUIRED_PATH.get(self.method, Path)
        if not isinstance(path, required):
            raise ValueError(
                f"{self.method} samples a {required.__name__}, got {type(path).__name__}; use one "
                f"of {', '.join((*METHODS, 'dopri5'))}"
            )
        if isinstance(path, VPPath) and self.method in OF_VP:
            select_timesteps(path, self.steps, self.spacing)

    @property
    def selection(self) -> str:
        """Description of where the steps lie, for records and pages."""
        if self.method == "dopri5":
            return f"adaptive, tolerance {self.tolerance:g}"
        if self.method == "pndm":
            return "leading among those of training, the second twice"
        if self.method in OF_VP:
            return f"{self.spacing} among those of training"
        if self.method in OF_EDM:
            return "in sigma"
        return "equal in t" if self.shift == 1 else f"equal in t, then shifted by {self.shift:g}"

    def __call__(self, velocity: Velocity, noise: Tensor) -> SamplerOutput:
        """Integrate a velocity from ``noise`` ``[B, *shape]`` at t = 1 to data at t = 0."""
        if self.method == "dopri5":
            return sample_dopri5(velocity, noise, tolerance=self.tolerance)
        if self.method not in METHODS:
            raise ValueError(f"{self.method} needs path and model; use sampler.sample")
        return METHODS[self.method](velocity, noise, steps=self.steps, shift=self.shift)

    def sample(
        self, path: Path, model: Model, noise: Tensor, *, cond: Cond | None = None, step_noise: StepNoise | None = None
    ) -> SamplerOutput:
        """Turn ``noise`` ``[B, *shape]`` of unit variance at t = 1, times ``init_scale``, into data.

        The ``model`` was trained on ``path``; ``step_noise`` is of methods that add some at every step. ValueError if
        the method cannot sample this path.
        """
        self.check(path)
        steps, spacing, noise = self.steps, self.spacing, self.init_scale * noise
        if isinstance(path, VPPath) and self.method in ("ddim", "ddpm"):
            eta = 1.0 if self.method == "ddpm" else self.eta
            return sample_ddim(
                path, model, noise, cond, steps, spacing, eta=eta, clip=self.clip, step_noise=step_noise
            )
        if isinstance(path, VPPath) and self.method == "dpm":
            return sample_dpm(path, model, noise, cond, steps, spacing)
        if isinstance(path, VPPath) and self.method == "pndm":
            return sample_pndm(path, model, noise, cond, steps)
        if isinstance(path, EDMPath) and self.method == "edm":
            return sample_edm(path, model, noise, cond=cond, steps=steps)
        if isinstance(path, EDMPath) and self.method == "consistency":
            return sample_consistency(path, model, noise, cond=cond, steps=steps, step_noise=step_noise)
        start = path.sigma_max * noise if isinstance(path, EDMPath) else noise
        return self(path.velocity(model, cond), start)

    def with_steps(self, steps: int) -> "SamplerConfig":
        """Return the sampler with ``steps`` steps; Euler's for one that chooses its own."""
        method = "euler" if self.method == "dopri5" else self.method
        return replace(self, method=method, steps=steps)

    def scaled(self, bound: Callable[[float], float]) -> "SamplerConfig":
        """Return the sampler for scaled data: ``bound`` is of scaled data, given that of data."""
        return self if self.clip is None else replace(self, clip=bound(self.clip))

    def __str__(self) -> str:
        parts = {
            self.method: True,
            f"{self.tolerance:g}" if self.method == "dopri5" else str(self.steps): True,
            f"eta {self.eta:g}": self.method == "ddim" and self.eta,
            f"clip {self.clip or 0:g}": self.method in ("ddim", "ddpm") and self.clip is not None,
            self.spacing: self.method in ("ddim", "ddpm", "dpm") and self.spacing != "trailing",
            f"guidance {self.guidance:g}": self.guidance != 1,
            "matched": self.init_noise == "matched",
            f"init_scale {self.init_scale:g}": self.init_scale != 1,
            f"prune {self.prune or 0:g}": self.prune is not None,
            f"shift {self.shift:g}": self.shift != 1,
        }
        return " ".join(part for part, applies in parts.items() if applies)
