"""Semidiscrete pairing: equal shares of N(0, I), the optimum, tables, labels, bad input."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare, kstest, norm
from torch.utils.data import DataLoader

from immiscible_diffusion.couplings import (
    LinearAssignment,
    Moments,
    NoiseFirst,
    Semidiscrete,
    SemidiscretePlan,
    Shuffled,
    _validation,
    check_coupling_name,
    parse_coupling,
    semidiscrete,
    semidiscrete_fit,
)
from immiscible_diffusion.couplings.moments import groups
from immiscible_diffusion.couplings.semidiscrete_fit import balanced
from immiscible_diffusion.couplings.testing import check_coupling

N, SHAPE = 40, (2, 3)


def blobs(count=N, shape=SHAPE, seed=0):
    """Data whose lengths differ, so that nearest neighbors alone share unevenly."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(count, *shape, generator=generator)
    return 0.3 + data * (0.3 + torch.rand(count, 1, 1, generator=generator))


@pytest.fixture(scope="module")
def plan():
    data = blobs()
    return SemidiscretePlan.fit(data, Moments.fit(data), tolerance=1e-3)


def index(count=N):
    return {"index": torch.arange(count)}


def test_two_samples_share_by_the_plane_between_them():
    """Of two samples the half-space ``<n, x_1 - x_0> > b_0 - b_1`` must hold half of the noise: the b are equal."""
    data = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    plan = SemidiscretePlan.fit(data, Moments.fit(data))
    gap = float(plan.bias[0] - plan.bias[1])
    assert norm.cdf(gap / 5) == pytest.approx(0.5, abs=0.02)
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    assert float(plan.sample_of(noise).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_weights_of_three_points_on_a_line_are_those_of_the_normal_quantiles():
    """On a line the optimal map is monotone: the shares are the intervals between the normal terciles."""
    data = torch.tensor([[-2.0], [0.5], [1.0]])
    plan = SemidiscretePlan.fit(data, Moments.fit(data), tolerance=1e-4)
    line = torch.linspace(-3, 3, 6001)[:, None]
    owner = plan.sample_of(line)
    edges = [float(line[(owner == i).nonzero()[-1, 0]]) for i in (0, 1)]
    assert edges == pytest.approx([norm.ppf(1 / 3), norm.ppf(2 / 3)], abs=0.05)


def test_shares_are_equal(plan):
    count = 200_000
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2))
    share = plan.sample_of(noise).bincount(minlength=N) / count
    assert float(N * share.square().sum() - 1) < 5e-3
    assert plan.chi_square <= 1e-3


def test_the_map_is_the_optimal_transport_of_many_noises(plan):
    """With M noises a sample the exact assignment costs what the map does, up to its own finite M."""
    data, each = blobs(), 25
    noise = torch.randn(N * each, *SHAPE, generator=torch.Generator().manual_seed(3)).flatten(1)
    gain = noise @ (data.flatten(1) - data.flatten(1).mean(0)).T
    rows, columns = linear_sum_assignment(-gain.repeat_interleave(each, dim=1).numpy())
    exact = float(gain.repeat_interleave(each, dim=1)[rows, columns].mean())
    own = plan.sample_of(noise.view(-1, *SHAPE))
    assert float(gain[torch.arange(len(noise)), own].mean()) == pytest.approx(exact, rel=0.03)
    flat = plan.table(each, 0, 0).float() @ plan.directions
    table = torch.einsum("nrd,nd->nr", flat, data.flatten(1) - data.flatten(1).mean(0))
    assert float(table.mean()) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("noises", [1, 3])
def test_sweeps_make_a_table_without_a_fit_nearly_optimal(noises, monkeypatch):
    """A table has the noises that were drawn, and 97 % of the pull of the exact assignment or more."""
    monkeypatch.setattr("immiscible_diffusion.couplings.semidiscrete_plan.NEIGHBORS", 128)
    data = blobs(600)
    plan = SemidiscretePlan.fit(data, Moments.fit(data), max_steps=0)
    start, swept = (plan.table(noises, seed=1, number=0, sweeps=sweeps).float() for sweeps in (0, 8))
    assert torch.equal(start.flatten(0, 1).sort(dim=0).values, swept.flatten(0, 1).sort(dim=0).values)
    gain = (swept.flatten(0, 1) @ plan.samples.T).repeat_interleave(noises, dim=1)
    rows, columns = linear_sum_assignment(-gain.numpy())
    exact = float(gain[rows, columns].mean())
    pulls = [float(torch.einsum("nkr,nr->nk", table, plan.samples).mean()) for table in (start, swept)]
    assert pulls[0] < pulls[1] <= exact + 1e-5
    assert pulls[1] > 0.97 * exact


def test_a_table_is_the_noise_that_was_drawn_each_once(plan):
    """So the whole table is N(0, I) exactly, and every sample has equally many."""
    noises = 50
    table = plan.table(noises, seed=5, number=2).float()
    assert table.shape == (N, noises, 6)
    flat = table.flatten(0, 1)
    assert len(flat.unique(dim=0)) == len(flat)
    assert min(kstest(flat[:, i].numpy(), "norm").pvalue for i in range(6)) > 1e-3
    assert torch.allclose(flat.T @ flat / len(flat), torch.eye(6), atol=6 / math.sqrt(len(flat)))
    again, other = plan.table(noises, seed=5, number=2), plan.table(noises, seed=5, number=3)
    assert torch.equal(again.float(), table)
    assert not torch.equal(other.float(), table)


def test_noise_is_that_of_the_sample_for_any_batch_size(plan):
    data, coupling = blobs(), Semidiscrete(plan, noises=64)
    whole = torch.stack([coupling(data, cond=index()) for _ in range(200)])
    single = torch.stack([coupling(data[3:4], cond={"index": torch.tensor([3])})[0] for _ in range(2000)])
    assert torch.allclose(whole[:, 3].mean(0), single.mean(0), atol=0.25)
    flat, rows = whole.flatten(2), data.flatten(1)
    assert float(torch.nn.functional.cosine_similarity(flat, rows, dim=2).mean()) > 0.4
    assert min(kstest(flat[..., i].flatten().numpy()[::7], "norm").pvalue for i in range(6)) > 1e-3
    own = (plan.sample_of(whole.flatten(0, 1)) == torch.arange(N).repeat(200)).float().mean()
    assert float(own) > 0.85  # some of a table were handed on


def test_across_the_directions_noise_is_fresh():
    data = blobs()
    plan = SemidiscretePlan.fit(data, Moments.fit(data), rank=2)
    given = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(4))
    noise = Semidiscrete(plan).pair(data, given, cond=index())
    axes = plan.directions
    across = lambda x: x.flatten(1) - x.flatten(1) @ axes.T @ axes  # noqa: E731
    assert torch.allclose(across(noise), across(given), atol=1e-5)
    table = plan.table(16, 0, 0).float()
    nearest = torch.cdist((noise.flatten(1) @ axes.T)[:, None], table).min(dim=2).values
    assert float(nearest.max()) < 1e-4


def test_the_noise_given_a_label_is_normal_where_the_plan_is_within_labels():
    """Two classes apart from each other: without labels each class's noise leans to its side; within labels not."""
    data = torch.cat([blobs(20) - 2, blobs(20, seed=1) + 2])
    labels = torch.arange(40) // 20
    moments = Moments.fit(data)
    blind = Semidiscrete(SemidiscretePlan.fit(data, moments), noises=200)
    within = Semidiscrete(SemidiscretePlan.fit([(data, labels)], moments), noises=200, cond_key="label")
    shift = {}
    for coupling in (blind, within):
        noise = torch.stack([coupling(data[:20], cond={"index": torch.arange(20)}) for _ in range(300)])
        shift[coupling] = float(noise.mean(dim=(0, 1)).norm())
    assert shift[blind] > 0.7
    assert shift[within] < 0.1
    with pytest.raises(ValueError, match="no samples of label 7"):
        within.plan.sample_of(data[:2], torch.tensor([0, 7]))
    assert within.preserves_conditional("label")
    assert not blind.preserves_conditional("label")


def test_a_label_is_read_from_the_noise_of_assignment_but_not_of_a_plan_within_labels():
    """By the side of a plane on which the noise lies: 1 is always right, 1/2 is chance."""
    data = torch.cat([blobs(20) - 2, blobs(20, seed=1) + 2])
    labels = torch.arange(40) // 20
    plan = SemidiscretePlan.fit([(data, labels)], Moments.fit(data))
    right = {}
    for coupling in (LinearAssignment(), Semidiscrete(plan, noises=200, cond_key="label")):
        noise = torch.stack([coupling(data, cond=index()) for _ in range(200)])
        right[coupling.name] = float(((noise.flatten(2).sum(dim=2) > 0) == (labels == 1)).float().mean())
    assert right["assignment"] > 0.85
    assert right["semidiscrete"] == pytest.approx(0.5, abs=0.03)


def test_equal_samples_share_one_share():
    data = torch.cat([blobs(10), blobs(10)[:5], blobs(10)[:5]])
    plan = SemidiscretePlan.fit(data, Moments.fit(data))
    assert torch.equal(plan.first[10:15], torch.arange(5))
    assert torch.equal(plan.bias[10:15], plan.bias[:5])
    noise = torch.randn(100_000, *SHAPE, generator=torch.Generator().manual_seed(5))
    share = plan.sample_of(noise).bincount(minlength=20) / 100_000
    expected = torch.tensor([0.15] * 5 + [0.05] * 5 + [0.0] * 10)
    assert torch.allclose(share, expected, atol=0.01)
    table = plan.table(30, 0, 0).float()
    assert len(table.flatten(0, 1).unique(dim=0)) == 20 * 30


def test_a_zero_has_no_sign():
    data = torch.cat([blobs(600), blobs(2) * torch.tensor([[[0.0]], [[-0.0]]])])
    plan = SemidiscretePlan.fit(data, Moments.fit(data), max_steps=0)
    assert torch.equal(plan.first, torch.arange(602).clamp_max(600))


def test_balancing_moves_as_few_as_it_must_and_fills_every_sample():
    generator = torch.Generator().manual_seed(6)
    samples, noise = torch.randn(7, 4, generator=generator), torch.randn(70, 4, generator=generator)
    owner = (noise @ samples.T).argmax(dim=1)
    capacity = torch.tensor([4, 16, 10, 10, 10, 10, 10])
    result = balanced(owner, capacity, noise, samples, torch.zeros(7))
    assert torch.equal(result.bincount(minlength=7), capacity)
    least = (owner.bincount(minlength=7) - capacity).clamp_min(0).sum()
    assert int((result != owner).sum()) == int(least)


def test_tables_follow_the_step_and_nothing_else(plan):
    coupling, data = Semidiscrete(plan, refresh=10), blobs()
    noise = [
        coupling.at_step(step)(data, cond=index(), generator=torch.Generator().manual_seed(0))
        for step in (0, 9, 10, 25)
    ]
    same = [torch.equal(a, b) for a, b in itertools.pairwise(noise)]
    assert same == [True, False, False]
    shuffled = Shuffled(coupling).at_step(25).coupling
    assert shuffled.number == 2
    assert coupling.at_step(3) is coupling


def test_tables_by_name_may_last_epochs(plan):
    name = "shuffled:semidiscrete:refresh_epochs=1.5"
    assert parse_coupling(name, plan=plan, epoch=5).coupling == Semidiscrete(plan, refresh=8)
    for epochs, epoch, steps in (("2.2", 3125, 6875), ("3", 1000 / 3, 1000), ("1e-9", 5, 1), ("1.1", 5, 6)):
        assert parse_coupling(f"semidiscrete:refresh_epochs={epochs}", plan=plan, epoch=epoch).refresh == steps
    for bad in ("0", "-1", "1e999", "1e308", "true", "'a'"):
        with pytest.raises(ValueError, match=r"refresh_epochs must be above 0 and at most 1,000,000$"):
            parse_coupling(f"semidiscrete:refresh_epochs={bad}", plan=plan, epoch=5)
    with pytest.raises(ValueError, match="not both"):
        parse_coupling("semidiscrete:refresh_epochs=1,refresh=8", plan=plan, epoch=5)
    with pytest.raises(ValueError, match="needs the steps of an epoch"):
        parse_coupling(name, plan=plan)
    check_coupling_name(name)


def test_it_keeps_what_a_coupling_promises(plan):
    check_coupling(Semidiscrete(plan, tolerance=1e6), shape=SHAPE, conditions=index)


def test_autocast_changes_no_bit(plan):
    """Not of the first call either, which makes the table."""
    for coupling in (Semidiscrete(plan, number=77), Semidiscrete(plan, number=78, sweeps=2)):
        call = lambda: coupling(blobs(), cond=index(), generator=torch.Generator().manual_seed(0))  # noqa: E731, B023
        with torch.autocast("cpu", torch.bfloat16):
            noise, owner = call(), plan.sample_of(call())
        semidiscrete._table.cache_clear()
        assert torch.equal(noise, call())
        assert torch.equal(owner, plan.sample_of(noise))


def test_a_plan_is_saved_and_read_again(plan, tmp_path):
    plan.save(tmp_path / "plan.safetensors")
    again = SemidiscretePlan.load(tmp_path / "plan.safetensors")
    assert again == plan
    assert torch.equal(again.table(3, 1, 0), plan.table(3, 1, 0))


def test_a_fit_reports_and_warns_where_it_was_cut_short():
    data, seen = blobs(), []
    with pytest.warns(UserWarning, match="balanced all the same"):
        SemidiscretePlan.fit(
            data, Moments.fit(data), tolerance=1e-9, max_steps=5, progress=lambda *done: seen.append(done)
        )
    assert seen[-1][0] == 5


def test_a_fit_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(semidiscrete_fit, "SECONDS", 0.0)
    monkeypatch.setattr(semidiscrete_fit, "EVERY", 20)
    data, labels, state = blobs(), torch.arange(N) % 2, tmp_path / "fit.safetensors"
    moments, seen = Moments.fit(data), []

    def fit(progress=None, data=data):
        return SemidiscretePlan.fit([(data, labels)], moments, tolerance=2e-3, progress=progress, state=state)

    whole = fit(lambda step, _: seen.append(step))
    assert not state.exists()
    assert seen.count(20) == 2
    assert seen[-1] >= 40  # the second label was checked twice at least

    def killed(step, _):
        done.append(step)
        if len(done) == len(seen) - 1:  # within the second label
            raise KeyboardInterrupt

    done = []
    with pytest.raises(KeyboardInterrupt):
        fit(killed)
    kept, done = state.read_bytes(), []
    assert fit(lambda step, _: done.append(step)) == whole
    assert done == seen[-2:]  # the check at which it was killed is done again
    state.write_bytes(kept)
    other = blobs(seed=1)
    assert fit(data=other) == SemidiscretePlan.fit([(other, labels)], moments, tolerance=2e-3)
    state.write_bytes(kept[:-1])
    with pytest.raises(ValueError, match=r"fit\.safetensors"):
        fit()


def test_a_fit_starts_near_its_end():
    """Few directions hold most of the data, as of images: with ``b_j = -c |x_j|`` it would be 4."""
    generator = torch.Generator().manual_seed(7)
    data = torch.randn(500, 32, generator=generator) * 8 / (1 + torch.arange(32))
    plan = SemidiscretePlan.fit(data, Moments.fit(data), max_steps=0)
    share = plan.sample_of(torch.randn(50_000, 32, generator=generator)).bincount(minlength=500) / 50_000
    assert float(500 * share.square().sum() - 1) < 1.5


def test_a_fit_ends_when_enough_noises_say_so(monkeypatch):
    """Points evenly on a circle have equal shares from the start: only the noise of the count is to be overcome."""
    monkeypatch.setattr(semidiscrete_fit, "RATE", 0.0)
    counted, scores = [], semidiscrete_fit.scores
    monkeypatch.setattr(
        semidiscrete_fit, "scores", lambda noise, *plan: counted.append(len(noise)) or scores(noise, *plan)
    )
    angle, seen = torch.arange(10) / 10 * 2 * math.pi, []
    data = torch.stack([angle.cos(), angle.sin()], dim=1)
    for tolerance in (1e-3, 5e-5):
        counted.clear()
        plan = SemidiscretePlan.fit(
            data, Moments.fit(data), tolerance=tolerance, progress=lambda *done: seen.append(done)
        )
        steps = seen[-1][0]
        assert steps < 1000
        assert plan.chi_square <= tolerance
        noises = sum(counted) - steps * semidiscrete_fit.BATCH
        assert noises >= math.sqrt(2 * 10) / (0.5 * tolerance)


def test_noise_chooses_its_samples(plan):
    """Batches of a loader are the samples that their noise belongs to, equally often; a step is a step again."""
    data, sampler = blobs(), NoiseFirst(plan, batch_size=64)
    batches = list(itertools.islice(DataLoader(data, batch_sampler=sampler), 300))
    noise = torch.stack([sampler.noise(step) for step in range(300)])
    for step in (0, 299):
        assert torch.equal(batches[step], data[plan.sample_of(noise[step])])
    often = torch.cat([sampler.indices(step) for step in range(300)]).bincount(minlength=N)
    assert chisquare(often.numpy()).pvalue > 1e-3
    assert kstest(noise.flatten()[::7].numpy(), "norm").pvalue > 1e-3
    resumed = iter(NoiseFirst(plan, batch_size=64, start=7))
    assert next(resumed) == sampler.indices(7).tolist()
    for other in (NoiseFirst(plan, batch_size=64, seed=1), NoiseFirst(plan, batch_size=64, rank=1)):
        assert not torch.equal(other.noise(0), noise[0])
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        NoiseFirst(plan, batch_size=0)


def test_noise_chooses_its_samples_within_labels_as_often_as_they_come():
    data, labels = blobs(), (torch.arange(N) >= 30).long()
    plan = SemidiscretePlan.fit([(data, labels)], Moments.fit(data))
    sampler = NoiseFirst(plan, batch_size=500)
    index = torch.cat([sampler.indices(step) for step in range(40)])
    noise = torch.cat([sampler.noise(step) for step in range(40)])
    assert chisquare(index.bincount(minlength=N).numpy()).pvalue > 1e-3
    for label in (0, 1):
        assert kstest(noise[labels[index] == label].flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("cond", "said"),
    [
        (None, 'needs cond\\["index"\\]'),
        ({"index": torch.arange(N) + 1}, "index runs from 1 to 40; the plan has samples 0 to 39"),
        ({"index": torch.arange(N) - 1}, "index runs from -1"),
        ({"index": torch.arange(N).float()}, "must be a tensor of whole numbers"),
        ({"index": torch.arange(N - 1)}, "must be a tensor of whole numbers \\[40\\]"),
        ({"index": list(range(N))}, "must be a tensor of whole numbers"),
        ({"index": torch.arange(N) > 0}, "must be a tensor of whole numbers"),
        ({"index": torch.arange(N).flip(0)}, "is not sample"),
    ],
)
def test_an_index_that_does_not_lead_to_the_sample_is_an_error(plan, cond, said):
    with pytest.raises(ValueError, match=said):
        Semidiscrete(plan)(blobs(), cond=cond)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_an_index_may_be_of_any_whole_numbers(plan, dtype):
    calls = [
        Semidiscrete(plan)(blobs(), cond={"index": torch.arange(N, dtype=kind)}, generator=torch.Generator())
        for kind in (dtype, torch.int64)
    ]
    assert torch.equal(*calls)


def test_an_index_out_of_range_where_data_cannot_be_read(plan, monkeypatch):
    """Data on an accelerator: a plan on the CPU reads the index all the same, one beside them gives NaN."""
    wrong = {"index": torch.tensor([-1, 3, N])}
    monkeypatch.setattr(semidiscrete, "can_sync", lambda tensor: tensor.ndim == 1)
    with pytest.raises(ValueError, match="index runs from -1 to 40"):
        Semidiscrete(plan)(blobs(3), cond=wrong)
    for module in (semidiscrete, _validation):
        monkeypatch.setattr(module, "can_sync", lambda tensor: False)
    noise = Semidiscrete(plan)(blobs(3), cond=wrong)
    assert noise.isfinite().flatten(1).all(dim=1).tolist() == [False, True, False]


def test_other_data_and_unknown_augmentation_are_errors_unless_allowed(plan):
    with pytest.raises(ValueError, match=r"of other data .*or the sample was augmented"):
        Semidiscrete(plan)(blobs().flip(-1), cond=index())
    assert Semidiscrete(plan, tolerance=100.0)(blobs().flip(-1), cond=index()).shape == (N, *SHAPE)
    with pytest.raises(ValueError, match="plan was fitted on data of shape"):
        Semidiscrete(plan)(torch.randn(N, 6), cond=index())


def test_data_that_cannot_be_fitted_are_refused():
    data = blobs()
    moments = Moments.fit(data)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        SemidiscretePlan.fit(data[:1], moments)
    bad = data.clone()
    bad[7, 0, 0] = math.nan
    with pytest.raises(ValueError, match="row 7 is not finite"):
        SemidiscretePlan.fit(bad, moments)
    with pytest.raises(ValueError, match="data row 7 is not finite"):
        SemidiscretePlan.fit(bad.split(5), moments)
    with pytest.raises(ValueError, match="data row 7 is not finite"):
        Semidiscrete(SemidiscretePlan.fit(data, moments, max_steps=0))(bad, cond=index())
    for none in (None, Moments.fit(data, directions=0)):
        with pytest.raises(ValueError, match=r"needs Moments\.fit with directions"):
            SemidiscretePlan.fit(data, none)
    for wrong, said in (
        ({"rank": 7}, "rank must be 1 to 6"),
        ({"rank": "all"}, "rank must be 1 to 6"),
        ({"max_steps": -1}, "max_steps must be a whole number >= 0"),
        ({"max_steps": "few"}, "max_steps must be a whole number >= 0"),
        ({"tolerance": 0.0}, "tolerance must be > 0"),
    ):
        with pytest.raises(ValueError, match=said):
            SemidiscretePlan.fit(data, moments, **wrong)
    with pytest.raises(ValueError, match="give all labels or none"):
        SemidiscretePlan.fit([(data, torch.zeros(N).long()), data], moments)


def test_noise_that_belongs_to_no_sample_is_refused(plan):
    noise, data, labels = torch.randn(4, *SHAPE), blobs(), torch.arange(N) % 2
    within = SemidiscretePlan.fit([(data, labels)], Moments.fit(data), max_steps=0)
    for call, said in (
        (lambda: plan.sample_of(noise * math.nan), "noise row 0 is not finite"),
        (lambda: plan.sample_of(noise, torch.zeros(4).long()), "fitted without labels"),
        (lambda: within.sample_of(noise), "fitted with labels"),
        (lambda: within.sample_of(noise, torch.zeros(3).long()), r"labels must be whole numbers \[4\]"),
        (lambda: NoiseFirst("plan", 4), "plan must be SemidiscretePlan.fit"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_data_that_are_all_equal_have_all_noise_in_common():
    data = torch.ones(5, *SHAPE)
    coupling = Semidiscrete(SemidiscretePlan.fit(data, Moments.fit(data)))
    assert coupling(data, cond=index(5)).shape == data.shape
    with pytest.raises(ValueError, match="is not sample"):
        Semidiscrete(SemidiscretePlan.fit(data, Moments.fit(blobs())))(2 * data, cond=index(5))


def test_a_plan_works_on_its_own_device():
    """Of a plan on an accelerator the indices must be there too; ``meta`` stands in for one."""
    [(_, rows)] = groups(None, torch.empty(N, 2, device="meta"))
    assert rows.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rank=2", "was fitted with rank 6"),
        ("cond_key=color", "cond_key must be one of label"),
        ("tolerance=wide", "tolerance must be a finite number"),
        ("seed=0.5", "seed must be a whole number"),
        ("max_steps=-1", "max_steps must be a whole number >= 0"),
        ("max_steps=few", "max_steps must be a whole number >= 0"),
    ],
)
def test_options_that_the_plan_or_the_coupling_do_not_have_are_errors(plan, name, said):
    with pytest.raises(ValueError, match=said):
        parse_coupling(f"semidiscrete:{name}", plan=plan)
    assert parse_coupling("semidiscrete:rank=6", plan=plan) == Semidiscrete(plan)


def test_other_labels_than_those_of_the_fit_are_an_error():
    data, labels = blobs(), torch.arange(N) % 2
    plan = SemidiscretePlan.fit([(data, labels)], Moments.fit(data), max_steps=0)
    coupling = Semidiscrete(plan, cond_key="label")
    assert coupling(data, cond=index() | {"label": labels}).shape == data.shape
    with pytest.raises(ValueError, match="data row 0 has label 1, and sample 0 of the plan 0"):
        coupling(data, cond=index() | {"label": 1 - labels})
    with pytest.raises(ValueError, match=r"fit\(\[\(data, labels\)\], moments\)"):
        Semidiscrete(SemidiscretePlan.fit(data, Moments.fit(data), max_steps=0), cond_key="label")


@pytest.mark.parametrize(
    "name", ["semidiscrete:plan=3", "semidiscrete:number=3", "aligned(beta=5)", "quantile:rows=4"]
)
def test_what_no_name_may_give_is_an_error(name):
    data = blobs()
    with pytest.raises(ValueError, match=r"by name|around another|max_steps"):
        parse_coupling(name, plan=SemidiscretePlan.fit(data, Moments.fit(data), rank=1, max_steps=0))
