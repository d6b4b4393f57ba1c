"""Weights, their average and the optimizer's state split over ranks by FSDP2, as accelerate is configured."""

import copy
import io
import os
import pickle
import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from immiscible_diffusion.training.recipe import Recipe

NOT_IN_PLACE = ("torch.", "diffusers.", "immiscible_diffusion.")


def plugin(recipe: "Recipe") -> Any:
    """Return FSDP2 as accelerate's launcher was configured to shard, None if not; ValueError for what is not sharded.

    Weights are gathered in the precision that the network computes in, and gradients summed in float32. Inputs stay as
    they are: times in bfloat16 would be rounded to 3 digits, and autocast casts what layers take.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

    for other in ("DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{other}"):
            raise ValueError(
                f"{other} splits weights or their state over ranks in a way that checkpoints and the average do not "
                f"know; use accelerate launch --use_fsdp --fsdp_version 2"
            )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError(
            "weights are split by FSDP2, and FSDP1 was asked for; give accelerate launch --fsdp_version 2"
        )
    if recipe.mixed_precision == "fp16" or recipe.optim.use_8bit_adam:
        raise ValueError(
            "FSDP shards neither the loss scale of mixed_precision fp16 nor optim.use_8bit_adam; use bf16"
        )
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ValueError(
            "accelerate computes activations once more with other dropout, so that gradients are wrong; give "
            "--model.gradient_checkpointing instead of --fsdp_activation_checkpointing"
        )
    dtype = torch.bfloat16 if recipe.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    # The other way of loading expects that nothing but weights is in a network's state.
    loading = {"cpu_ram_efficient_loading": False}
    return FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy=policy, **loading)


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks have shards of the weights of ``model`` (DTensor)."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def prepare(accelerator: Any, model: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """Return both as accelerate shards them, in mixed precision as it has whole ones.

    Its policy by size also chooses lists of layers, which FSDP2 refuses: their ``forward``, before which it would
    gather them, is never called. What is in them is chosen by itself, or goes with the module that has the list.
    """
    from unittest.mock import patch

    from accelerate.utils import convert_outputs_to_fp32, fsdp_utils

    choose = fsdp_utils.fsdp2_prepare_auto_wrap_policy

    def choose_called(*arguments: Any) -> Any:
        chosen = choose(*arguments)
        return chosen and (lambda module: type(module).forward is not nn.Module.forward and chosen(module))

    # Torch warns of computing in place on what a layer returns. These networks never do; others may.
    if all(type(module).__module__.startswith(NOT_IN_PLACE) for module in model.modules()):
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    with patch.object(fsdp_utils, "fsdp2_prepare_auto_wrap_policy", choose_called):  # accelerate takes no callable
        prepared, optimizer = accelerator.prepare(model, optimizer)
    model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
    return prepared, optimizer


def hollow(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` without weights, for ``whole``."""
    empty = {id(w): nn.Parameter(w.detach().to("meta"), w.requires_grad) for w in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](empty))


def whole(form: nn.Module, model: nn.Module, weights: Iterable[Any]) -> nn.Module:
    """Return a copy of the ``hollow`` form with all ``weights`` of the sharded ``model``, on rank 0.

    All ranks must call; what the others get has no weights.
    """
    state = dict(model.named_buffers())
    for (name, _), weight in zip(form.named_parameters(), weights, strict=True):
        gathered = weight.full_tensor()
        if torch.distributed.get_rank() == 0:
            state[name] = gathered.detach()
    result = copy.deepcopy(form)
    result.load_state_dict(state, strict=False, assign=True)
    return result


def save(folder: Path, model: nn.Module, optimizer: Any, average: dict[str, Tensor], group: Any) -> Future[Any]:
    """Copy the shards to the CPU, and write those of all ranks, who must all call, to ``folder`` in a thread.

    ``wait`` says when all are on the disk. The thread needs a gloo ``group`` of its own; None of one process.
    """
    from torch.distributed import checkpoint

    state = _state(model, optimizer, average)
    return cast("Future[Any]", checkpoint.async_save(state, checkpoint_id=folder, process_group=group))


def wait(written: Future[Any], folder: Path) -> None:
    """Wait until ``save`` has written the shards of all ranks to ``folder``; OSError on all if one could not."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        written.result()
    except CheckpointException as error:
        raise OSError(f"cannot write {folder}: {_cause(error)}; with that mended, the same command resumes") from error


def load(folder: Path, model: nn.Module, optimizer: Any, average: dict[str, Tensor]) -> None:
    """Read what any number of ranks saved into what this rank has of it, a shard or all.

    ``torch.distributed.checkpoint`` unpickles its list of contents and small values; ValueError, before that, for any
    that name other code than its own.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    class Planner(checkpoint.DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            torch.load(value, weights_only=True)
            value.seek(0)
            super().load_bytes(read_item, value)

    try:
        with (folder / ".metadata").open("rb") as file:
            _OwnClasses(file).load()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise ValueError(f"the list of contents of its shards cannot be read: {error}") from error
    state = _state(model, optimizer, average)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process needs no launcher
            checkpoint.load(state, checkpoint_id=folder, planner=Planner())  # into the tensors themselves
    except checkpoint.CheckpointException as error:
        raise ValueError(f"its shards cannot be read: {_cause(error)}") from error
    set_optimizer_state_dict(model, optimizer.optimizer, state["optimizer"])


def split(state: dict[str, Any], model: nn.Module, optimizer: Any, average: dict[str, Any]) -> None:
    """Take this rank's shards of the ``state`` of a checkpoint that holds all."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.tensor import distribute_tensor

    options, names = StateDictOptions(full_state_dict=True, strict=False), list(average)
    model.load_state_dict({name: b for name, b in state["model"].items() if name not in average}, strict=False)
    set_model_state_dict(model, {name: state["model"][name] for name in names}, options=options)
    named: dict[str, Any] = {
        "state": {names[number]: of_weight for number, of_weight in state["optimizer"]["state"].items()},
        "param_groups": [group | {"params": names} for group in state["optimizer"]["param_groups"]],
    }
    set_optimizer_state_dict(model, optimizer.optimizer, named, options=options)
    for own, weight in zip(average.values(), state["ema"]["shadow_params"], strict=True):
        own.copy_(distribute_tensor(weight.to(own.device), own.device_mesh, own.placements))


def _state(model: nn.Module, optimizer: Any, average: dict[str, Tensor]) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    weights = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))
    weights = {name: weights[name] for name in average}  # buffers, which are whole, may have another shape yet
    return {"model": weights, "optimizer": get_optimizer_state_dict(model, optimizer.optimizer), "average": average}


def _cause(error: Any) -> str:
    """Return the first line of what failed on the first rank of a CheckpointException."""
    return str(next(iter(error.failures.values()))[0]).partition("\n")[0]


class _OwnClasses(pickle.Unpickler):
    """Reads what needs no code but that of checkpoints."""

    def find_class(self, module: str, name: str) -> Any:
        own = "torch.distributed.checkpoint"
        known = {(f"{own}.filesystem", "_StorageInfo"), ("torch", "Size"), ("torch.serialization", "_get_layout")}
        known |= {("pathlib", "PosixPath"), ("pathlib", "WindowsPath")}
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in known or is_type or (module == f"{own}.metadata" and "." not in name):
            return super().find_class(module, name)
        raise ValueError(f"the list of contents of its shards names {module}.{name}, which no checkpoint does")
