"""Networks of which only a part is trained: what is copied, averaged and saved is that part."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a step changes, in their order."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def trainable_names(model: nn.Module) -> list[str] | None:
    """Return their names, or None where all are trained."""
    every = list(model.named_parameters())
    names = [name for name, weight in every if weight.requires_grad]
    return None if len(names) == len(every) else names


def copy_sharing_frozen(model: nn.Module) -> nn.Module:
    """Return a deep copy whose frozen parameters are those of ``model`` themselves."""
    memo: dict[int, Any] = {id(w): w for w in model.parameters() if not w.requires_grad}
    return copy.deepcopy(model, memo)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of the trainable parameters; the whole state where all are trained."""
    names, state = trainable_names(model), model.state_dict()
    return state if names is None else {name: state[name] for name in names}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what ``trainable_state`` returned; RuntimeError if it is of other parameters."""
    names = trainable_names(model)
    if names is not None and state.keys() != set(names):
        raise RuntimeError(
            f"the state holds {len(state)} tensors; expected the {len(names)} that are trained, such as {names[0]}"
        )
    model.load_state_dict(state, strict=names is None)
