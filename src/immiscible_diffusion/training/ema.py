"""The exponential moving average of the weights."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from immiscible_diffusion.models.trainable import copy_sharing_frozen, trainable_parameters
from immiscible_diffusion.training import sharding
from immiscible_diffusion.utils.checks import NonNegativeFloat, Probability, check_fields
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True)
class EMAConfig:
    """How weights are averaged.

    Args:
        decay: decay of the average, in [0, 1); 0 = the weights themselves.
        warmup: let the decay grow as (1 + step) / (10 + step) up to ``decay``, so that short runs forget their start;
            off as published.
        power: let it grow as 1 - (1 + step)^-power instead (Diffusion Policy: 0.75); 0 = off.
    """

    decay: Probability = 0.9999
    warmup: bool = False
    power: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "ema.")
        if self.power and self.warmup:
            raise ValueError(f"ema.power {self.power} and ema.warmup are two ramps; choose one")

    def tiny(self) -> "EMAConfig":
        """Shrink to a smoke run."""
        return replace(self, decay=0.9, warmup=True, power=0.0)

    def __str__(self) -> str:
        if not self.decay:
            return "none"
        power = f", ramped up by a power of {self.power:g}" if self.power else ""
        return f"{self.decay:g}" + (", ramped up" if self.warmup else power)


class EMA:
    """The average of the trainable weights, in a copy of the model that shares the frozen ones.

    ``form`` is that copy, if it was made before; of weights that are sharded it is ``hollow``, and each rank averages
    its own.
    """

    def __init__(self, config: EMAConfig, model: nn.Module, form: nn.Module | None = None) -> None:
        with require_extra("train", "the average of the weights"):
            from diffusers.training_utils import EMAModel
        self._model, self.is_sharded = model, sharding.is_sharded(model)
        self.form = (copy_sharing_frozen(model) if form is None else form).eval()
        ramped = config.warmup or config.power > 0
        self._ema = EMAModel(
            trainable_parameters(model),
            decay=config.decay,
            min_decay=0.0 if ramped else config.decay,
            use_ema_warmup=config.power > 0,
            power=config.power,
            foreach=True,
        )

    def update(self, model: nn.Module) -> None:
        """Average in the weights after a step."""
        self._ema.step(trainable_parameters(model))

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, in eval mode; sharded ones are gathered, and all ranks must ask."""
        if self.is_sharded:
            average = iter(self._ema.shadow_params)
            own = self._model.parameters()
            return sharding.whole(self.form, self._model, (next(average) if w.requires_grad else w for w in own))
        self._ema.copy_to(trainable_parameters(self.form))
        return self.form

    def whole_model(self) -> nn.Module:
        """The model with its own weights, which are gathered as those of ``model`` are."""
        return sharding.whole(self.form, self._model, self._model.parameters()) if self.is_sharded else self._model

    @property
    def numbers(self) -> dict[str, Any]:
        """How far the average is and how it is made: the state without the weights."""
        return {name: value for name, value in self._ema.state_dict().items() if name != "shadow_params"}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, themselves; shards of them where they are sharded."""
        names = [name for name, weight in self.form.named_parameters() if weight.requires_grad]
        return dict(zip(names, self._ema.shadow_params, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return self._ema.state_dict()

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Load what ``state_dict`` returned; buffers, which are not averaged, are those of ``model``."""
        self._ema.load_state_dict(state)
        self._ema.to(next(model.parameters()).device)
        self.form.load_state_dict(dict(model.named_buffers()), strict=False)
