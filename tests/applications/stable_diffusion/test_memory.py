"""What pairing adds to the peak memory of a training step of Stable Diffusion."""

import gc
import warnings

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from immiscible_diffusion import KNN
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging

BATCH, SHAPE, K = 128, (4, 32, 32), 64


class Peak(TorchDispatchMode):
    """Bytes of tensors alive at most, of those made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.bytes = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return made


def peak_of(work):
    gc.collect()
    with Peak() as peak:
        result = work()
    del result
    return peak.bytes


@pytest.fixture(scope="module")
def step_bytes():
    """Weights, gradients and activations of one micro-batch of v1.4's U-Net, without storage.

    Of float32 and with gradient checkpointing, as published; Adam's state and the average, which
    would only make pairing a smaller share, are left out.
    """
    with silence_hf_logging():
        from diffusers import UNet2DConditionModel
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        unet = UNet2DConditionModel(sample_size=32, cross_attention_dim=768)
        unet.enable_gradient_checkpointing()
        unet.train()
        data, text = torch.randn(BATCH, *SHAPE), torch.randn(BATCH, 77, 768)

        def step():
            said = unet(data, torch.zeros(BATCH), text).sample
            said.square().mean().backward()

        activations = peak_of(step)
    weights = sum(w.numel() * w.element_size() for w in unet.parameters())
    assert sum(w.numel() for w in unet.parameters()) == 859_520_964, "v1.4's"
    return weights + activations


def test_the_tracker_counts_what_is_alive():
    def work():
        one = torch.zeros(1000)
        two = one + 1
        del one
        return two + 1

    assert peak_of(work) == 2 * 4000


def test_pairing_adds_less_than_a_hundredth(step_bytes):
    data = torch.randn(BATCH, *SHAPE)
    added = peak_of(lambda: KNN(K)(data, generator=torch.Generator().manual_seed(0)))
    own = data.numel() * data.element_size()
    assert added < 4 * own, "a few times the noise itself, whatever k"
    assert added < 0.001 * step_bytes
    published = 3 * K * own  # three tensors of [B, k, D]
    assert added < published / 40
