"""FSDP2 in processes of gloo: equal to one process, and resumed on other numbers of ranks."""

import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import checkpoint

from fixtures.two_processes import launch
from helpers import assert_equal_but_for_rounding, assert_same_weights, train
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training import sharding
from immiscible_diffusion.training.builders import make_accelerator
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.run_dir import RunDir

WORKER = """
import json, sys
from pathlib import Path
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer

recipe, run = Recipe.from_dict(json.loads(sys.argv[1])), RunDir(Path(sys.argv[2]))
trainer = Trainer(recipe, run, device="cpu")
held = {}
# Several layers are gathered one at a time, though lists of them are as large.
assert sum(isinstance(module, FSDPModule) for module in trainer.run.model.modules()) > 3

def weigh(step, model):
    inner, weights = trainer.optimizer.optimizer, list(trainer.run.model.parameters())
    state = [t for s in inner.state.values() for t in s.values()]
    for tensor in [*weights, *state, *trainer.ema.weights.values()]:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        held["here"] = held.get("here", 0) + local.nbytes
        held["all"] = held.get("all", 0) + tensor.nbytes

trainer.train(until=int(sys.argv[3]), evaluate=weigh, evaluate_at=(int(sys.argv[3]),), quiet=True)
if trainer.is_main:
    print(held["here"] / held["all"])
"""

# So that single layers are above the threshold, and lists of them.
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SHARDED |= {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "2000"}


@pytest.fixture
def recipe():
    """A U-Net, clipped gradients, and a step in two micro-batches."""
    tiny = recipe_from_name("digits-flow").tiny()
    model = UNet(channels=16, multipliers=(1, 2), blocks=1, groups=4, head_channels=4, dropout=0.0)
    optim = dataclasses.replace(tiny.optim, max_grad_norm=0.5)
    changes = {
        "coupling": "knn:k=4",
        "preview_every": 25,
        "log_every": 5,
        "checkpoint_every": 10,
        "checkpoints_total_limit": None,
    }
    return dataclasses.replace(tiny, model=model, optim=optim, steps=50, gradient_accumulation_steps=2, **changes)


def shard(monkeypatch, recipe, processes, until, folder):
    """Train to a step in sharded processes, activations computed twice; the share of the state that rank 0 holds."""
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    network = dataclasses.replace(recipe.model, gradient_checkpointing=recipe.model.can_checkpoint)
    recipe = dataclasses.replace(recipe, model=network, gradient_accumulation_steps=1)
    words = (json.dumps(recipe.to_dict()), folder / "run", until)
    try:
        return float(launch(WORKER, processes, *words, folder=folder, limit=300).split()[-1])
    finally:
        monkeypatch.undo()


@pytest.mark.subprocess
def test_shards_equal_one_process_and_go_on_in_any_number(recipe, tmp_path, monkeypatch):
    """Fifty steps: in two sharded processes, in four, which share two parts, in one that holds all, and in two."""
    train(recipe, tmp_path / "whole")
    run = RunDir(tmp_path / "run")
    assert shard(monkeypatch, recipe, 2, 20, tmp_path) < 0.55
    assert_equal_but_for_rounding(tmp_path / "whole" / "checkpoints" / "step_000020", run.root)
    assert shard(monkeypatch, recipe, 4, 25, tmp_path) < 0.3
    assert sorted(folder.name for folder in run.root.glob("shards/*")) == [
        *("step_000010", "step_000020", "step_000025")
    ]
    train(recipe, run.root, until=40)
    shard(monkeypatch, recipe, 2, 50, tmp_path)
    assert_equal_but_for_rounding(tmp_path / "whole", run.root)
    lines = [[r["loss"] for r in RunDir(tmp_path / name).records("train")] for name in ("whole", "run")]
    assert lines[1] == pytest.approx(lines[0], rel=1e-5)


@pytest.mark.subprocess
def test_shards_resumed_in_as_many_processes_are_equal_bit_for_bit(recipe, tmp_path, monkeypatch):
    """In bfloat16, and with buffers whose shape is that of the data once they are fitted."""
    mlp = recipe_from_name("digits-flow").tiny().model
    recipe = dataclasses.replace(recipe, model=mlp, steps=6, mixed_precision="bf16")
    for name, stops in (("whole", (6,)), ("parts", (3, 6))):
        (tmp_path / name).mkdir()
        for until in stops:
            shard(monkeypatch, recipe, 2, until, tmp_path / name)
    assert_same_weights(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


NETWORKS = """
import copy, os, sys, warnings
import torch
from pathlib import Path
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet
from immiscible_diffusion.models import DiT, MLP, UNet, UNet1D
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training import sharding
from immiscible_diffusion.training.builders import make_accelerator
from immiscible_diffusion.training.run_dir import RunDir

small_sd, folder = sys.argv[1:]
warnings.filterwarnings("error", "FSDP2-wrapped module")  # a view, which nothing changes in place: weights are equal
observation, text = {"observation": torch.ones(2, 6)}, {"text": torch.ones(2, 12, 8)}
for config, shape, cond, build in [
    (UNet(16, (1, 2), 1, (4,), 8, 8, 0.0), (3, 8, 8), None, {}),
    (MLP(width=64), (3, 8, 8), None, {}),
    (DiT(heads=2, head_channels=8, depth=2), (3, 8, 8), None, {}),
    (UNet1D(channels=(16, 32)), (16, 2), observation, {"conditions": {"observation": (6,)}}),
    (StableDiffusionUNet(small_sd), (4, 8, 8), text, {}),
]:
    torch.manual_seed(0)
    model = config.build(shape, **build).train()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    whole = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (whole, model)]
    accelerator = make_accelerator(recipe_from_name("digits-flow"), "cpu", RunDir(Path(folder)))
    model, optimizers[1] = sharding.prepare(accelerator, model, optimizers[1])
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 3, type(config)
    x, time = torch.randn(2, *shape), torch.tensor([3.0, 500.0])
    for network, optimizer in zip((whole, model), optimizers):
        network(x, time, cond).square().mean().backward()
        optimizer.step()
    for (name, one), other in zip(whole.named_parameters(), model.parameters()):
        assert isinstance(other, DTensor), name
        torch.testing.assert_close(other.full_tensor(), one, msg=lambda said: name + said)
accelerator.wait_for_everyone()
os._exit(0)  # threads of gloo that still free tensors would abort while Python ends
"""


@pytest.mark.subprocess
def test_every_network_is_sharded_by_layers_larger_than_the_threshold(small_sd, tmp_path, monkeypatch):
    """Not by their lists of layers; a step changes all weights as it does in one process."""
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    launch(NETWORKS, 2, small_sd, tmp_path, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "setting", "said"),
    [
        ({}, "FSDP_VERSION=1", r"FSDP1.*--fsdp_version 2"),
        ({}, "ACCELERATE_USE_DEEPSPEED=true", "DEEPSPEED splits .*--use_fsdp --fsdp_version 2"),
        ({}, "ACCELERATE_USE_MEGATRON_LM=true", "MEGATRON_LM splits .*--use_fsdp --fsdp_version 2"),
        ({}, "FSDP_ACTIVATION_CHECKPOINTING=true", "give --model.gradient_checkpointing instead"),
        ({"mixed_precision": "fp16"}, "FSDP_VERSION=2", "use bf16"),
        ({"optim": OptimizerConfig(use_8bit_adam=True)}, "FSDP_VERSION=2", "use_8bit_adam"),
    ],
)
def test_what_cannot_be_sharded_is_refused(recipe, tmp_path, monkeypatch, change, setting, said):
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2"), setting.split("=")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        make_accelerator(dataclasses.replace(recipe, **change), "cpu", RunDir(tmp_path))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_run_no_code_of_theirs(tmp_path):
    """Neither their list of contents nor the small values beside the tensors; what they hold is read back."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = {name: 2 * weight.detach() for name, weight in model.named_parameters()}
    parts = model, SimpleNamespace(optimizer=optimizer), average
    expected = [weight.clone() for weight in (*model.parameters(), *average.values())]
    sharding.wait(sharding.save(tmp_path / "good", *parts, None), tmp_path / "good")
    with torch.no_grad():
        for tensor in (*model.parameters(), *average.values()):
            tensor.zero_()
    sharding.load(tmp_path / "good", *parts)
    assert all(map(torch.equal, (*model.parameters(), *average.values()), expected))

    (tmp_path / "good" / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(ValueError, match="open, which no checkpoint does"):
        sharding.load(tmp_path / "good", *parts)
    optimizer.param_groups[0]["lr"] = Evil(tmp_path / "made")
    checkpoint.save(sharding._state(*parts), checkpoint_id=tmp_path / "bad")  # our own copies it, which runs its code
    with pytest.raises(ValueError, match="shards cannot be read: Weights only"):
        sharding.load(tmp_path / "bad", *parts)
    assert not (tmp_path / "made").exists()
