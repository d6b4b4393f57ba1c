import pytest
import torch

from immiscible_diffusion.utils.device import is_accelerated, peak_memory, pick_device, synchronize


def test_a_device_is_picked_by_name_and_an_absent_one_raises():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    assert is_accelerated() or pick_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="device tpu is not available here"):
        pick_device("tpu")


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(max(before // 4, 2**26))  # floats: as much as was ever held
    synchronize(block.device)
    assert peak_memory(block.device) - before > block.nbytes // 2
