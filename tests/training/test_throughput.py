"""Floating-point operations of a step, the card's peak, and the options that make steps fast."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training import trainer as module
from immiscible_diffusion.training.dry_run import dry_run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.throughput import card_peak, training_flops
from immiscible_diffusion.training.trainer import Trainer


def test_operations_are_those_of_products_and_their_gradients():
    first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    rows = torch.zeros(5, 8)
    # Forward and gradients of weights of both, and the gradient of what goes into the second.
    assert training_flops(nn.Sequential(first, nn.SiLU(), second), rows) == 2 * 5 * (2 * 8 * 16 + 3 * 16 * 4)
    assert first.weight.grad is None
    frozen = nn.Sequential(first.requires_grad_(False), second)
    assert training_flops(frozen, rows) == 2 * 5 * (8 * 16 + 2 * 16 * 4)


def test_operations_of_the_published_unet():
    with torch.device("meta"):
        network = UNet(init="zero").build((3, 32, 32))
    image = training_flops(network, torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert image == pytest.approx(3 * 12.4e9, rel=0.02)  # DDPM: 6.1 GMAC a pass
    assert training_flops(network, torch.zeros(2, 3, 32, 32), torch.zeros(2)) == 2 * image
    network.unet.enable_gradient_checkpointing()
    assert image < training_flops(network, torch.zeros(1, 3, 32, 32), torch.zeros(1)) < 4 / 3 * image


@pytest.fixture
def calls(monkeypatch):
    """Where every call of what was compiled is noted, without a compiler."""
    calls: list[int] = []
    compile_by = torch.compile

    def backend(graph, inputs):
        def call(*values):
            calls.append(1)
            return graph.forward(*values)

        return call

    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_by(model, **options, backend=backend))
    return calls


def test_counting_leaves_a_compiled_network_compiled(calls):
    torch._dynamo.reset()
    network, images, t = UNet().tiny().build((3, 8, 8)), torch.zeros(2, 3, 8, 8), torch.zeros(2)
    expected = training_flops(network, images, t)
    network.compile()
    for count in (1, 2):
        assert training_flops(network, images, t) == expected
        network(images, t)
        assert len(calls) == count


@pytest.mark.parametrize("name", ["digits-flow", "fashion-flow", "cifar10-consistency", "pusht-policy-small"])
def test_every_kind_of_network_is_counted(name, tmp_path, request):
    recipe = recipe_from_name(name).tiny()
    if name == "pusht-policy-small":
        shared = request.getfixturevalue("shared_data")
        data = replace(recipe.task.data, path=str(shared / "pusht" / "pusht_cchi_v7_replay.npz"))
        recipe = replace(recipe, task=recipe.task.replace(data=data))
    elif name == "cifar10-consistency":
        recipe = replace(recipe, task=recipe.task.replace(data=recipe.task.data.at_hand()))
    trainer = Trainer(recipe, RunDir(tmp_path), device="cpu")
    assert trainer.flops >= 4 * recipe.batch_size * sum(p.numel() for p in trainer.run.model.parameters())


def test_cards_are_known_by_name_or_not_at_all():
    assert card_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert card_peak("NVIDIA H100 PCIe", "fp16") == 756e12
    assert card_peak("NVIDIA A100-SXM4-40GB", "no") == 156e12
    assert card_peak("NVIDIA L4", "bf16") < card_peak("NVIDIA L40S", "bf16")
    assert card_peak("NVIDIA L40", "bf16") is None
    assert card_peak("some other card", "bf16") is None


def test_the_log_has_the_share_of_a_card_that_is_known(tiny, tmp_path, monkeypatch):
    Trainer(tiny, (run := RunDir(tmp_path / "unknown")), device="cpu").train(quiet=True)
    assert all("peak_share" not in record for record in run.records("train"))
    monkeypatch.setattr(module, "device_peak", lambda device, precision: 1e12)
    trainer = Trainer(tiny, (run := RunDir(tmp_path / "known")), device="cpu")
    trainer.train(quiet=True)
    for record in run.records("train"):
        speed = trainer.flops / record["seconds_per_step"]
        assert record["peak_share"] == pytest.approx(speed / 1e12)


def test_a_dry_run_says_steps_a_second_and_the_share(tiny, monkeypatch):
    lines: list[str] = []
    assert dry_run(tiny, "cpu", lines.append)
    assert any("steps/s" in line and "no share" in line and "of an H100" in line for line in lines)
    monkeypatch.setattr(module, "device_peak", lambda device, precision: 989e12)
    assert dry_run(tiny, "cpu", lines.append)
    assert any("steps/s" in line and "% of the 989 TFLOP/s" in line for line in lines)


def test_one_kernel_and_weights_by_pixel_learn_the_same(tiny, tmp_path):
    model = UNet(channels=8, blocks=1, groups=4, head_channels=4, multipliers=(1, 2), attention=(), dropout=0.0)
    recipe = replace(tiny, model=model)
    quick = replace(recipe, channels_last=True, optim=replace(recipe.optim, fused=True))
    usual, fast = (Trainer(each, RunDir(tmp_path / str(n)), device="cpu") for n, each in enumerate((recipe, quick)))
    convolution = next(each for each in fast.ema.model.modules() if isinstance(each, nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    for trainer in (usual, fast):
        trainer.train(quiet=True)
    for one, other in zip(usual.ema.model.parameters(), fast.ema.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_compiled_network_trains_samples_and_goes_on(tiny, tmp_path, calls):
    recipe = replace(tiny, compile=True)
    trainer = Trainer(recipe, (run := RunDir(tmp_path / "compiled")), device="cpu")
    trainer.train(until=4, quiet=True)
    Trainer(recipe, run, device="cpu").train(quiet=True)
    assert len(calls) > tiny.steps
    Trainer(tiny, (usual := RunDir(tmp_path / "usual")), device="cpu").train(quiet=True)
    one, other = (each.records("train")[-1]["loss"] for each in (run, usual))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.usefixtures("fresh_accelerate")
def test_every_training_of_a_process_is_compiled(tiny, tmp_path, calls):
    recipe, counts = replace(tiny, compile=True, mixed_precision="bf16", steps=2), []
    for number in range(10):
        calls.clear()
        Trainer(recipe, RunDir(tmp_path / str(number)), device="cpu").train(quiet=True)
        counts.append(len(calls))
    assert counts[0] > 0
    assert len(set(counts)) == 1
