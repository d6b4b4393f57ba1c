"""What a run of a network told by text leaves for other people's programs."""

from immiscible_diffusion.applications.stable_diffusion.export.model_card import (
    check_before,
    model_card,
    push,
)
from immiscible_diffusion.applications.stable_diffusion.export.run import publish

__all__ = ["check_before", "model_card", "publish", "push"]
