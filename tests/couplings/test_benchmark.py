import torch

from immiscible_diffusion import KNN, Independent
from immiscible_diffusion.couplings.describe import measure_cost, peak_bytes


def test_peak_counts_what_is_held_together():
    data = torch.zeros(1000)

    def call():
        first = data + 1  # 4,000 bytes
        second = first * 2  # 8,000 together
        del first
        view = second[:10]
        return view.add_(1), second.double()  # 12,000

    assert peak_bytes(call, data) == 12_000
    assert peak_bytes(lambda: data.view(10, 100), data) == 0


def test_randn_is_the_unit():
    found = measure_cost(Independent(), torch.zeros(64, 512))
    assert found.memory == 1
    assert found.rows == 64
    assert found.times_randn > 0


def test_memory_of_knn_is_that_of_the_data_whatever_k():
    data = torch.ones(8, 4096)
    assert measure_cost(KNN(512), data).memory < 4
