import pytest
import torch

from immiscible_diffusion.utils.device import is_accelerated, peak_memory, pick_device, synchronize


def test_a_device_is_picked_by_name_and_an_absent_one_raises():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    assert is_accelerated() or pick_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="device tpu is not available here"):
        pick_device("tpu")


def test_peak_memory_is_in_bytes_and_counts_what_is_held():
    block = torch.ones(2**25)
    synchronize(block.device)
    assert block.nbytes < peak_memory(block.device) < 2**40
