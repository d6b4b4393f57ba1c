"""What a recipe costs on an accelerator, counted without one: floating-point operations, hours, memory.

    python -m reproduce.cost cifar10-flow cifar10-ddim imagenet-sd-scratch

Operations of a forward and a backward pass of one sample are counted by ``torch.utils.flop_counter`` on tensors
without memory, times the batch and the steps, at ``--share`` (0.4) of the accelerator's peak (``--tflops``, by default
an H100's dense peak: 989 in half precision, 495 in tf32). Memory is that of weights, gradients, Adam and the average,
and of what the backward pass keeps of a micro-batch. Both are estimates: data loading, VAE and text encoder are left
out.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.recipe import Recipe

SD14 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # v1.4's; the rest is the default
POLICY = (16, 2), {"observation": (2, 20)}  # Push-T's actions, and its key points


def network(recipe: Recipe) -> tuple[nn.Module, Tensor, dict[str, Tensor] | None]:
    """The recipe's network on the meta device, one sample, and its conditions."""
    data: Any = recipe.task.data
    with torch.device("meta"):
        if recipe.name == "pusht-policy":
            shape, conditions = POLICY
            cond = {name: torch.empty(1, *size) for name, size in conditions.items()}
            return recipe.model.build(shape, conditions=conditions), torch.empty(1, *shape), cond
        if hasattr(recipe.task, "codec"):
            from diffusers import UNet2DConditionModel

            unet, states = UNet2DConditionModel(**SD14), torch.empty(1, 77, 768)
            return _Conditioned(unet), torch.empty(1, 4, data.size // 8, data.size // 8), {"text": states}
        shape = (3, data.size or 32, data.size or 32)
        return recipe.model.build(shape), torch.empty(1, *shape), None


class _Conditioned(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.unet(x, time, cond["text"]).sample


def count(recipe: Recipe) -> dict[str, float]:
    """Parameters; operations of a sample's forward pass and of a training step; bytes kept of a sample."""
    model, x, cond = network(recipe)
    time, kept = torch.empty(1, device="meta"), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.numel() * tensor.element_size()
        return tensor

    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x, time, cond)
    with FlopCounterMode(display=False) as both, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x, time, cond).square().mean().backward()
    evaluations = 2 if type(recipe.loss).__name__ == "ConsistencyLoss" else 1
    step = both.get_total_flops() + (evaluations - 1) * forward.get_total_flops()
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "parameters": parameters,
        "forward": forward.get_total_flops(),
        "step": step * recipe.batch_size,
        "kept": sum(kept.values()),
    }


def main() -> None:
    """Print a row for every recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached")
    parser.add_argument("--tflops", type=float, help="peak of the accelerator")
    options = parser.parse_args()
    print(
        "| recipe | parameters, M | TFLOP a step | steps | hours | memory, GiB | hours of 50,000 samples, 50 steps |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in options.recipes:
        recipe = recipe_from_name(name)
        half = recipe.mixed_precision != "no"
        rate = options.share * (options.tflops or (989 if half else 495)) * 1e12
        counts = count(recipe)
        hours = counts["step"] * recipe.steps / rate / 3600
        micro = recipe.batch_size // recipe.gradient_accumulation_steps
        kept = counts["kept"] * (0.5 if half else 1)
        if getattr(recipe.model, "gradient_checkpointing", False):
            hours *= 4 / 3  # the forward pass is made twice
            kept /= 8  # about: the inputs of blocks alone
        memory = (20 * counts["parameters"] + micro * kept) / 2**30  # weights, gradient, Adam's two, average: 4 bytes
        sampling = 50_000 * 50 * counts["forward"] / rate / 3600
        print(
            f"| {name} | {counts['parameters'] / 1e6:.1f} | {counts['step'] / 1e12:.3g} | {recipe.steps:,} | "
            f"{hours:.3g} | {memory:.3g} | {sampling:.2g} |"
        )


if __name__ == "__main__":
    main()
