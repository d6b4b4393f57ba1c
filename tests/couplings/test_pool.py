from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import KNN, Coupling, Independent, LinearAssignment, Shuffled
from immiscible_diffusion.couplings.paired_loader import pair_pool
from immiscible_diffusion.utils.batch import Batch


@dataclass(frozen=True)
class Echo(Coupling):
    """Noise that shows the arguments: data, plus labels, zero where invalid."""

    pool: int = 4

    @property
    def pool_size(self):
        return self.pool

    def unpooled(self):
        return Echo(1)

    def choose(self, data, noise, cond, mask, generator):
        assert self.pool == 1, "a pool of one when called on a complete pool"
        noise = data + 100 * len(data)
        if cond is not None:
            noise = noise + 10000 * cond["label"].view(-1, *[1] * (data.ndim - 1))
        return noise if mask is None else noise * mask


def data_of(rows: int, *shape: int, start: int = 0, dtype=torch.float32) -> Tensor:
    count = rows * torch.Size(shape).numel()
    return torch.arange(start, start + count).view(rows, *shape).to(dtype)


@pytest.mark.parametrize(
    ("coupling", "size"),
    [
        (Independent(), 1),
        (KNN(4), 1),
        (Echo(3), 3),
        (Shuffled(Echo(3)), 3),
        (Shuffled(Shuffled(Echo(5))), 5),
        (Shuffled(LinearAssignment()), 1),
    ],
)
def test_the_pool_of_a_coupling_is_that_of_what_it_wraps(coupling, size):
    assert coupling.pool_size == size


def test_batches_come_back_in_order_grouped_by_shape_and_dtype():
    batches = [
        Batch(data_of(2, 3)),
        Batch(data_of(1, 4)),
        Batch(data_of(3, 3, start=50)),
        Batch(data_of(2, 3, dtype=torch.float64)),
        Batch(data_of(4, 4, start=70)),
    ]
    noises = pair_pool(Echo(), batches)
    sizes = [5, 5, 5, 2, 5]
    for batch, noise, size in zip(batches, noises, sizes, strict=True):
        assert noise.dtype == batch.data.dtype
        assert torch.equal(noise, batch.data + 100 * size)


def test_conditions_and_masks_go_with_their_data():
    mask = torch.tensor([True, True, False])
    batches = [
        Batch(data_of(2, 3), {"label": torch.tensor([1, 2])}),
        Batch(data_of(1, 3), {"label": torch.tensor([3])}, mask),
    ]
    first, second = pair_pool(Echo(), batches)
    assert torch.equal(first, data_of(2, 3) + 300 + torch.tensor([[10000.0], [20000.0]]))
    assert torch.equal(second, (data_of(1, 3) + 300 + 30000) * mask)


def test_without_masks_the_coupling_is_given_none():
    class NoMask:
        def __call__(self, data, *, cond=None, generator=None):
            return torch.randn(data.shape, generator=generator)

    assert len(pair_pool(NoMask(), [Batch(data_of(2, 3)), Batch(data_of(2, 3))])) == 2


def test_a_pool_is_paired_as_one_batch():
    data = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    coupling, parts = LinearAssignment(), [Batch(part) for part in data.split([3, 4, 5])]
    noise = torch.cat(pair_pool(coupling, parts, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(noise, coupling(data, generator=torch.Generator().manual_seed(1)))


def test_a_pool_of_one_batch_is_the_coupling_itself():
    batch, coupling = Batch(torch.randn(5, 3)), KNN(4)
    (noise,) = pair_pool(coupling, [batch], generator=torch.Generator().manual_seed(1))
    assert torch.equal(noise, coupling(batch.data, generator=torch.Generator().manual_seed(1)))


def test_wrapped_pools_are_called_whole():
    batches = [Batch(data_of(2, 3)), Batch(data_of(2, 3))]
    noises = torch.cat(pair_pool(Shuffled(Echo()), batches))
    assert torch.equal(noises.sort(dim=0).values, (data_of(2, 3).repeat(2, 1) + 400).sort(0).values)


def test_batches_that_cannot_be_joined_are_refused():
    with_text = Batch(data_of(2, 3), {"text": torch.zeros(2, 7)})
    with pytest.raises(ValueError, match=r"same conditions, got \[\['text'\], \[\]\]"):
        pair_pool(Independent(), [with_text, Batch(data_of(2, 3))])
    longer = Batch(data_of(2, 3), {"text": torch.zeros(2, 9)})
    with pytest.raises(ValueError, match="pad them"):
        pair_pool(Independent(), [with_text, longer])
