"""What share of a card's arithmetic training uses."""

import re
from typing import Any

import torch
from torch import nn

from immiscible_diffusion.training.sharding import hollow

# TFLOP/s of dense bf16 or fp16 products with float32 sums, by a part of the name that torch gives the card: NVIDIA's
# datasheets of H100, H200, A100, L40S and L4 (their figures with sparsity halved), the whitepapers of Ada and Ampere.
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def card_peak(card: str, mixed_precision: str) -> float | None:
    """Return the peak in FLOP/s of a ``card`` of that name, None of one not known; float32 (TF32) has half of it."""
    known = next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", card)), None)
    return known and known * 1e12 / (2 if mixed_precision == "no" else 1)


def device_peak(device: torch.device, mixed_precision: str) -> float | None:
    """Return ``card_peak`` of a CUDA device, None of any other."""
    return card_peak(torch.cuda.get_device_name(device), mixed_precision) if device.type == "cuda" else None


def training_flops(model: nn.Module, *inputs: Any) -> int:
    """Return the floating-point operations of ``model(*inputs)`` and of its gradients.

    Those of products and convolutions, two for each multiplication and addition, counted from shapes alone: nothing is
    computed. What ``gradient_checkpointing`` computes once more is counted once more. Inputs are tensors ``[B, ...]``,
    dictionaries of them, or None.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def meta(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: meta(each) for name, each in value.items()}
        return value if value is None else value.detach().to("meta").requires_grad_(value.requires_grad)

    with FlopCounterMode(display=False) as counter:
        hollow(model).to("meta")(*map(meta, inputs)).sum().backward()
    return int(counter.get_total_flops())
