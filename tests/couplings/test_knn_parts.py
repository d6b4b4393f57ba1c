"""KNN over valid positions, from a center, from the caller's noise, and among candidates."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.couplings import _validation as inputs
from immiscible_diffusion.couplings.testing import check_coupling


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def brute_force(x, k, rows, generator, valid=None):
    """The nearest to ``x`` [D], over ``valid`` [D], of k noises, ``rows`` times."""
    valid = torch.ones_like(x) if valid is None else valid.to(x)
    noise = torch.randn(rows, k, len(x), generator=generator, dtype=torch.float64)
    index = ((noise - x).square() * valid).sum(dim=2).argmin(dim=1)
    return noise[torch.arange(rows), index]


def p_values(ours, theirs):
    """Every coordinate, the length, and the length of the first half."""
    half = ours.shape[1] // 2 + 1
    found = [stats.ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in zip(ours.double().T, theirs.T, strict=True)]
    for part in (slice(None), slice(half)):
        norms = [noise[:, part].double().norm(dim=1).numpy() for noise in (ours, theirs)]
        found.append(stats.ks_2samp(*norms).pvalue)
    return found


def assert_same_law(p):
    p = np.array(p)
    assert p.min() > 1e-3 / len(p)


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 2, 5, 7])
@pytest.mark.parametrize("kind", ["plain", "zero", "long"])
def test_masked_law_is_that_of_drawing_all_candidates(positions, kind):
    x = torch.randn(7, generator=seeded(1), dtype=torch.float64)
    x = {"plain": x, "zero": 0 * x, "long": 1e4 * x}[kind]
    valid, p = torch.arange(7) < positions, []
    for k in (2, 16):
        data = x.float().expand(4000, 7).masked_fill(~valid, float("nan"))  # never read
        ours = KNN(k)(data, mask=valid, generator=seeded(k))
        p += p_values(ours, brute_force(x, k, 4000, seeded(k + 100), valid))
    assert_same_law(p)


def test_every_row_has_its_own_mask():
    x = torch.tensor([2.0, -2.0, 2.0, -2.0])
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    noise = KNN(16)(x.repeat(9000, 1), mask=mask.repeat(3000, 1), generator=seeded(2))
    for row, valid in enumerate(mask):
        mine = noise[row::3]
        assert_same_law(p_values(mine, brute_force(x.double(), 16, 3000, seeded(10 + row), valid)))
        outside = mine[:, ~valid]
        if outside.numel():
            assert stats.kstest(outside.flatten().numpy(), "norm").pvalue > 1e-4


def test_a_full_mask_is_no_mask_bit_for_bit():
    data = torch.randn(70, 3, 5, generator=seeded(3))
    mask = torch.ones(1, 3, 1, dtype=torch.bool)
    assert torch.equal(KNN(4)(data, generator=seeded(4)), KNN(4)(data, mask=mask, generator=seeded(4)))


def test_masked_law_with_a_center_and_blocks(monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK_ELEMENTS", 5 * 300)
    x, mean = torch.randn(2, 5, generator=seeded(5), dtype=torch.float64)
    valid = torch.tensor([True, False, True, True, False])
    data = (x + mean).expand(4000, 5)
    ours = KNN(8, center=Moments(mean, 1.0, 10))(data, mask=valid, generator=seeded(6))
    want = brute_force((x + mean) - mean.float(), 8, 4000, seeded(7), valid)
    assert_same_law(p_values(ours, want))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 4), "boolean, True where data are valid, got torch.float32"),
        ([[True]], "boolean, True where data are valid, got list"),
        (torch.ones(2, 3, dtype=torch.bool), r"mask \(2, 3\) does not broadcast to data \(2, 4\)"),
        (torch.ones(1, 2, 4, dtype=torch.bool), "does not broadcast"),
        (torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]).bool(), "mask leaves sample 1 no valid"),
    ],
)
@pytest.mark.parametrize("k", [1, 4])
def test_bad_masks_are_refused(mask, message, k):
    with pytest.raises(ValueError, match=message):
        KNN(k)(torch.zeros(2, 4), mask=mask)


def test_a_mask_that_may_be_read_in_two_ways_is_read_as_torch_does_and_said():
    data, mask = torch.ones(4, 4, 8), torch.arange(32).view(4, 8) % 3 > 0
    with pytest.warns(UserWarning, match="taken as one for all of data"):
        noise = KNN(4)(data, mask=mask, generator=seeded(15))
    assert torch.equal(noise, KNN(4)(data, mask=mask[None], generator=seeded(15)))


# -- centers --------------------------------------------------------------------------------------


def labeled(count=600):
    """Data of three labels far apart, and moments of them."""
    labels = torch.arange(count) % 3
    means = 4 * torch.eye(3, 6)
    data = means[labels] + 0.5 * torch.randn(count, 6, generator=seeded(8))
    return data, labels, Moments.fit([(data, labels)])


def test_center_label_takes_the_mean_of_the_datums_label():
    data, labels, moments = labeled()
    coupling = KNN(4, center="label", moments=moments)
    noise = coupling(data, cond={"label": labels}, generator=seeded(9))
    inner = data.double() - moments.label_mean[labels].double()
    assert torch.allclose(noise, KNN(4)(inner, generator=seeded(9)).float(), atol=1e-5)


def test_center_label_removes_the_drift_that_the_mean_leaves():
    data, labels, moments = labeled(3000)
    shift = {}
    for center in ("mean", "label"):
        noise = KNN(16, center=center, moments=moments)(data, cond={"label": labels}, generator=seeded(10))
        shift[center] = max(float(noise[labels == one].mean(dim=0).norm()) for one in range(3))
    assert shift["mean"] > 1
    assert shift["label"] < 0.2


def test_center_channel_serves_any_size():
    data = torch.randn(50, 2, 4, 4, generator=seeded(11)) + torch.tensor([3.0, -1.0])[:, None, None]
    moments = Moments.fit(data)
    coupling = KNN(4, center="channel", moments=moments)
    channel = data.mean(dim=(0, 2, 3)).view(2, 1, 1)
    for size in [(4, 4), (8, 2), (3, 5, 7)]:
        other = torch.randn(6, 2, *size, generator=seeded(12))
        mean = channel.view(2, *(1 for _ in size))
        want = KNN(4)((other - mean), generator=seeded(13))
        assert torch.allclose(coupling(other, generator=seeded(13)), want, atol=1e-4)
    with pytest.raises(ValueError, match=r"fitted on data of shape \(2,\), got \(3,\)"):
        coupling(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match='center="channel" for data of many sizes'):
        KNN(4, center=moments)(torch.zeros(1, 2, 8, 2))


def test_center_mean_by_word_is_center_by_moments():
    data, _, moments = labeled()
    by_word = KNN(4, center="mean", moments=moments)(data, generator=seeded(14))
    assert torch.equal(by_word, KNN(4, center=moments)(data, generator=seeded(14)))


def test_a_mean_of_ones_own_will_do():
    mean = types.SimpleNamespace(mean=torch.ones(6))
    assert bool(KNN(4, center=mean)(torch.zeros(3, 6)).isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: KNN(2, center="sum", moments=m), "center must be mean, label, channel"),
        (lambda m: KNN(2, center="label"), "a word needs moments=Moments.fit"),
        (lambda m: KNN(2, moments=m), "any other takes none"),
        (lambda m: KNN(2, center="label", moments=Moments(torch.zeros(6), 1.0, 1)), "label_mean"),
    ],
)
def test_bad_centers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(labeled()[2])


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (None, r'needs cond\["label"\]; conditions given: none'),
        ({"text": torch.zeros(600)}, "conditions given: text"),
        ({"label": torch.zeros(600)}, r"whole numbers \[600\], got torch.float32"),
        ({"label": torch.zeros(599, dtype=torch.int64)}, r"whole numbers \[600\]"),
        ({"label": torch.arange(600)}, "must be 0 to 2, as fitted, got 0 to 599"),
        ({"label": torch.arange(600) % 3 - 1}, "must be 0 to 2, as fitted, got -1 to 1"),
    ],
)
def test_bad_labels_are_refused(cond, message):
    data, _, moments = labeled()
    with pytest.raises(ValueError, match=message):
        KNN(2, center="label", moments=moments)(data, cond=cond)


# -- noise of the caller's ------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 5, 64])
@pytest.mark.parametrize("k", [2, 16])
def test_pair_has_the_law_of_a_call(dim, k):
    x = torch.randn(dim, generator=seeded(dim), dtype=torch.float64)
    data = x.float().expand(4000, dim)
    own = torch.randn(4000, dim, generator=seeded(20))
    before = own.clone()
    ours = KNN(k).pair(data, own, generator=seeded(21))
    assert torch.equal(own, before)
    assert_same_law(p_values(ours, brute_force(x, k, 4000, seeded(22))))


def test_pair_keeps_the_callers_noise_where_it_is_nearest():
    # The published torchcfm copy discards the caller's noise.
    data, own = torch.randn(2, 4000, 64, generator=seeded(23))
    kept = (KNN(4).pair(data, own, generator=seeded(24)) == own).all(dim=1).double().mean()
    assert abs(float(kept) - 1 / 4) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(KNN(1).pair(data, own), own)
    with pytest.raises(ValueError, match=r"noise must be \(4000, 64\) like data, got \(1, 64\)"):
        KNN(4).pair(data, own[:1])


# -- candidates of the caller's -------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_select_is_the_nearest_of_the_candidates(block, monkeypatch):
    monkeypatch.setattr("immiscible_diffusion.couplings.knn.BLOCK_ELEMENTS", block)
    data = torch.randn(6, 2, 3, generator=seeded(30))
    candidates = torch.randn(6, 9, 2, 3, generator=seeded(31))
    valid = torch.rand(6, 1, 3, generator=seeded(32)) < 0.7
    valid[:, :, 0] = True
    chosen = KNN(9).select(data, candidates, mask=valid)
    for x, options, mask, got in zip(data, candidates, valid, chosen, strict=True):
        best = min(options, key=lambda n: float(((n - x).square() * mask).sum()))
        assert torch.equal(got, best)


def test_select_from_a_center_and_in_half_precision():
    data, labels, moments = labeled(30)
    candidates = torch.randn(30, 5, 6, generator=seeded(33))
    chosen = KNN(5, center="label", moments=moments).select(data, candidates, cond={"label": labels})
    want = KNN(5).select(data - moments.label_mean[labels], candidates)
    assert torch.equal(chosen, want)
    long = (3 * torch.randn(8, 40_000, generator=seeded(34))).half()  # |x|^2 overflows float16
    options = torch.randn(8, 16, 40_000, generator=seeded(35)).half()
    assert torch.equal(KNN(16).select(long, options), KNN(16).select(long.float(), options.float()).half())


def test_select_refuses_what_does_not_fit():
    data = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"candidates must be \(2, 4, 3\), k = 4"):
        KNN(4).select(data, torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="candidates are not finite"):
        KNN(4).select(data, torch.full((2, 4, 3), float("nan")))


# -- all together ---------------------------------------------------------------------------------

SHAPES = st.sampled_from([(1,), (2,), (33,), (2, 3), (3, 4, 4), (2, 3, 2, 2), (100,)])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 257), SHAPES, DTYPES, st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 99))
def test_whatever_comes(count, shape, dtype, k, masked, strided, seed):
    data = torch.randn(count, *shape, 2, generator=seeded(seed)).to(dtype)
    data = data[..., 0] if strided else data[..., 0].contiguous()
    mask = None
    if masked:
        mask = torch.rand(count, *shape, generator=seeded(seed + 1)) < 0.5
        mask[(slice(None), *(0 for _ in shape))] = True
    labels = torch.arange(count)
    before, coupling = data.clone(), KNN(k)
    noise = coupling(data, cond={"label": labels}, mask=mask, generator=seeded(seed))
    assert (noise.shape, noise.dtype, noise.device) == (data.shape, dtype, data.device)
    assert bool(noise.isfinite().all())
    assert torch.equal(data, before)
    assert torch.equal(labels, torch.arange(count))
    again = coupling(data, mask=mask, generator=seeded(seed))
    assert torch.equal(noise, again)
    paired = coupling.pair(data, noise, mask=mask, generator=seeded(seed))
    assert paired.dtype == dtype
    assert bool(paired.isfinite().all())


def test_two_shapes_through_one_coupling():
    coupling = KNN(4)
    for shape in [(5, 3, 8, 8), (2, 3, 4, 16), (1, 7)]:
        assert coupling(torch.ones(shape)).shape == shape


def test_all_of_it_keeps_the_promises_of_a_coupling():
    _, _, moments = labeled()
    coupling = KNN(4, center="label", moments=moments, label_key="kind")
    check_coupling(coupling, shape=(6,), conditions=three_kinds)
    check_coupling(KNN(4, center="channel", moments=moments), shape=(6,))


def three_kinds(count):
    return {"kind": torch.arange(count) % 3}


@pytest.mark.parametrize("kind", ["plain", "masked", "centered"])
def test_ten_batch_sizes_take_two_graphs_at_most(kind):
    center = Moments(torch.zeros(3, 16), 1.0, 10) if kind == "centered" else None
    coupling, mask = KNN(8, center=center), (torch.arange(16) < 9) if kind == "masked" else None
    torch._dynamo.reset()
    backend = CompileCounter()
    compiled = torch.compile(lambda x: coupling(x, mask=mask), fullgraph=True, dynamic=True, backend=backend)
    for count in (2, 3, 4, 6, 7, 12, 16, 20, 33, 64):
        assert compiled(torch.randn(count, 3, 16)).shape == (count, 3, 16)
    assert backend.frame_count <= 2


class Draw(torch.nn.Module):
    def forward(self, data):
        return KNN(8)(data)


def test_exports_with_a_dynamic_batch():
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(Draw(), (torch.randn(5, 3, 16),), dynamic_shapes=({0: batch},))
    data = torch.randn(2000, 3, 16, generator=seeded(41))
    noise, want = program.module()(data), KNN(8)(data)
    for statistic in (lambda n: n.norm(dim=(1, 2)), lambda n: (n * data).sum((1, 2))):
        assert stats.ks_2samp(statistic(noise).numpy(), statistic(want).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("coupling", [Independent(), KNN(1), KNN(8), Shuffled(KNN(8))], ids=str)
def test_meta_and_fake_data_get_noise_of_their_shape(coupling):
    noise = coupling(torch.empty(4, 3, 16, device="meta"))
    assert noise.is_meta
    with FakeTensorMode():
        assert coupling(torch.empty(4, 3, 16)).shape == noise.shape == (4, 3, 16)


def test_what_cannot_be_done_without_values_says_so():
    with pytest.raises(ValueError, match="LinearAssignment needs the values"):
        LinearAssignment()(torch.empty(4, 3, device="meta"))
    with FakeTensorMode(), pytest.raises(ValueError, match="LinearAssignment needs the values"):
        LinearAssignment()(torch.empty(4, 3))
    for coupling in (KNN(8), LinearAssignment()):
        with pytest.raises(ValueError, match="outside"):
            torch.vmap(coupling, randomness="different")(torch.randn(2, 4, 3))
    assert torch.vmap(Independent(), randomness="different")(torch.randn(2, 4, 3)).shape == (2, 4, 3)
