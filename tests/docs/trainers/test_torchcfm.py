"""``as_torchcfm`` against the package: signatures, order of returns, who stays in place."""

import inspect
from dataclasses import dataclass

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Shuffled
from immiscible_diffusion.integrations import as_torchcfm, pull

WHY = "needs torchcfm and POT; without their heavy dependencies: pip install --no-deps torchcfm POT"
pytest.importorskip("ot", reason=WHY, exc_type=ImportError)
torchcfm = pytest.importorskip("torchcfm", reason=WHY, exc_type=ImportError)


@dataclass(frozen=True)
class Bare:
    """A coupling of a user's: no pair, no mask."""

    def __call__(self, data, *, cond=None, generator=None):
        return torch.randn(data.shape, generator=generator)


@pytest.fixture
def images():
    return torch.rand(48, 3, 8, 8) * 2 - 1


def paired_matcher(page):
    setup = vars(page("torchcfm").run("setup"))
    return page("torchcfm").run("after", **setup, device="cpu").FM


@pytest.mark.parametrize("name", ["sample_plan", "sample_plan_with_labels"])
def test_the_calls_are_those_of_the_package(name):
    ours = inspect.signature(getattr(as_torchcfm(KNN(2)), name))
    theirs = inspect.signature(getattr(torchcfm.OTPlanSampler("exact"), name))
    assert list(ours.parameters) == list(theirs.parameters)
    defaults = [parameter.default for parameter in theirs.parameters.values()]
    assert [parameter.default for parameter in ours.parameters.values()] == defaults


def test_what_is_returned_has_the_order_of_the_package(images):
    x0, labels = torch.randn_like(images), torch.arange(48)
    for sampler in (torchcfm.OTPlanSampler("exact"), as_torchcfm(LinearAssignment())):
        noise, data, none, y1 = sampler.sample_plan_with_labels(x0, images, y1=labels)
        assert none is None
        assert torch.equal(data, images[y1])
        rows = {tuple(row) for row in x0.flatten(1).tolist()}
        assert {tuple(row) for row in noise.flatten(1).tolist()} <= rows


@pytest.mark.parametrize("coupling", [KNN(4), LinearAssignment(), Independent(), Bare()])
def test_data_and_labels_stay_in_place_bit_for_bit(coupling, images):
    x0, y1, before = torch.randn_like(images), torch.arange(48), images.clone()
    kept = x0.clone()
    _, data, none, labels = as_torchcfm(coupling).sample_plan_with_labels(x0, images, None, y1)
    assert data is images
    assert torch.equal(data, before)
    assert labels is y1
    assert none is None
    assert torch.equal(labels, torch.arange(48))
    assert torch.equal(x0, kept)


def test_the_x0_given_is_used_not_dropped(images):
    """The published code drops it and draws anew: a fault that shows only in what is not random."""
    x0 = torch.randn_like(images)
    noise, _ = as_torchcfm(KNN(4)).sample_plan(x0, images)
    chosen = (noise == x0).flatten(1).all(dim=1)
    assert 0 < chosen.sum() < 48  # the first of four candidates is nearest for about 12
    cosine = torch.nn.functional.cosine_similarity(noise.flatten(1), x0.flatten(1))
    assert cosine.min() > 0.8  # the others keep its direction across the sample
    noise, _ = as_torchcfm(Independent()).sample_plan(x0, images)
    assert torch.equal(noise, x0)
    noise, _ = as_torchcfm(LinearAssignment()).sample_plan(x0, images)
    assert torch.equal(noise.flatten(1).sum(1).sort().values, x0.flatten(1).sum(1).sort().values)


def test_labeled_batches_are_paired_by_the_same_coupling(images):
    """The published code kept OT for labeled batches; here both calls are one coupling."""
    x0, sampler = torch.randn_like(images), as_torchcfm(KNN(4))
    torch.manual_seed(1)
    plain, _ = sampler.sample_plan(x0, images)
    torch.manual_seed(1)
    labeled, *_ = sampler.sample_plan_with_labels(x0, images, y1=torch.arange(48))
    assert torch.equal(plain, labeled)


@pytest.mark.parametrize("replace", [True, False])
def test_no_datum_is_dropped_or_repeated(images, replace):
    _, data = as_torchcfm(LinearAssignment()).sample_plan(torch.randn_like(images), images, replace=replace)
    assert torch.equal(data, images)


def test_assignment_is_their_exact_plan(images):
    x0 = torch.randn_like(images)
    plan = torch.as_tensor(torchcfm.OTPlanSampler("exact").get_map(x0, images))
    noise, data = as_torchcfm(LinearAssignment()).sample_plan(x0, images)
    assert torch.equal(noise, x0[plan.argmax(dim=0)])
    assert data is images


def test_labels_reach_the_coupling(images):
    @dataclass(frozen=True)
    class Sees(Bare):
        def __call__(self, data, *, cond=None, generator=None):
            assert cond is not None
            assert torch.equal(cond["kind"], torch.arange(48))
            return super().__call__(data)

    sampler = as_torchcfm(Sees(), label_key="kind")
    sampler.sample_plan_with_labels(torch.randn_like(images), images, y1=torch.arange(48))


def test_labels_of_noise_are_refused(images):
    with pytest.raises(ValueError, match="label the data with y1"):
        as_torchcfm(KNN(4)).sample_plan_with_labels(images, images, y0=torch.arange(48))


def test_no_coupling():
    with pytest.raises(ValueError, match="expected a coupling"):
        as_torchcfm("exact")


def test_the_control_is_passed_through(images):
    x0 = torch.randn_like(images)
    noise, _ = as_torchcfm(Shuffled(Independent())).sample_plan(x0, images)
    assert not (noise == x0).flatten(1).all(dim=1).any()


def test_the_matcher_of_the_page(page, images):
    """The page's table: the mixture less t u is the noise, plus (1 - t) u the data."""
    matcher, x0 = paired_matcher(page), torch.randn_like(images)
    t, xt, ut = matcher.sample_location_and_conditional_flow(x0, images)
    spread = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(xt + (1 - spread) * ut, images, atol=1e-5, rtol=1e-4)
    noise = xt - spread * ut
    assert pull(images, noise).mean() > 0.3
    ours_t, data, target = 1 - spread, images, noise - images
    torch.testing.assert_close((1 - ours_t) * data + ours_t * noise, xt, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(target, -ut, atol=1e-5, rtol=1e-4)


def test_the_guided_matcher_keeps_labels(page, images):
    labels = torch.arange(48)
    t, xt, ut, y0, y1 = paired_matcher(page).guided_sample_location_and_conditional_flow(
        torch.randn_like(images), images, y1=labels
    )
    assert y0 is None
    data = xt + (1 - t.view(-1, 1, 1, 1)) * ut
    torch.testing.assert_close(data, images[y1], atol=1e-5, rtol=1e-4)
    assert torch.equal(y1, labels)


def test_batch_of_one(page, images):
    t, xt, _ = paired_matcher(page).sample_location_and_conditional_flow(torch.randn(1, 3, 8, 8), images[:1])
    assert xt.shape == (1, 3, 8, 8)
    assert t.shape == (1,)


@pytest.mark.parametrize("name", ["ConditionalFlowMatcher", "TargetConditionalFlowMatcher"])
def test_matchers_without_a_plan(page, images, name):
    x0 = page("torchcfm").run("plain", x1=images, KNN=KNN).x0
    assert pull(images, x0).mean() > 0.3
    _, xt, _ = getattr(torchcfm, name)(sigma=0.0).sample_location_and_conditional_flow(x0, images)
    assert xt.shape == images.shape


def test_check_and_its_figure(page):
    data = 0.5 * torch.randn(2500, 3, 16, 16)
    found = as_torchcfm(KNN(k=4)).sample_plan(torch.randn_like(data), data)[0]
    lean = page("torchcfm").run("check", x1=data, x0_paired=found).lean
    assert abs(lean - 0.59) < 4 * 0.02
