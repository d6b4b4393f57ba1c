"""Every coupling on a GPU: dtypes, masks, distribution, streams, graphs; on the CPU what of it can run there."""

import functools

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, PairedLoader, Shuffled
from immiscible_diffusion.couplings import NoiseFirst, Semidiscrete, SemidiscretePlan, parse_coupling
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.quantile import Quantile
from immiscible_diffusion.couplings.registry import COUPLINGS, WRAPPERS

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAMES = [
    "independent",
    "knn:k=1",
    "knn:k=8",
    "knn:k=8,center=mean",
    "knn:k=8,center=label",
    "knn:k=8,center=channel",
    "assignment",
    "assignment:cost=norm",
    "assignment:cost=l1",
    "assignment:oversample=2",
    "assignment:cond_key=label",
    "assignment:solver=greedy",
    "quantile:rank=1",
    "gaussian_ot:eps=4",
    "semidiscrete:noises=64",
    "shuffled:knn:k=8",
    "calibrated:knn:k=8",
    "masked:knn:k=8",
    "warmup(start_step=3):knn:k=8",
    "aligned:assignment",
    "projected(pool=2):knn:k=8",
]
COUNT, SHAPE, CALLS = 64, (2, 4, 4), 16


def test_no_coupling_is_left_out():
    words = {word for name in NAMES for word in name.replace("(", ":").split(":")}
    assert set(COUPLINGS) | set(WRAPPERS) <= words


def generator(device, seed=0):
    return torch.Generator(device).manual_seed(seed)


def sample(device, dtype=torch.float64, masked=False):
    """Data of three labels, their conditions, and a mask that leaves half of them whole."""
    data = torch.randn(COUNT, *SHAPE, generator=generator("cpu"), dtype=torch.float64).to(dtype)
    data = (data + torch.arange(COUNT).view(-1, 1, 1, 1) % 3).to(device, memory_format=torch.channels_last)
    cond = {"label": torch.arange(COUNT) % 3, "index": torch.arange(COUNT)}
    cond["inpaint_mask"] = torch.arange(4).view(1, 1, 1, 4).expand(COUNT, 1, 4, 4) < 3
    cond = {key: value.to(device) for key, value in cond.items()}
    mask = (torch.arange(4) < 3) | (torch.arange(COUNT) % 2 == 0).view(-1, 1, 1, 1)
    return data, cond, mask.to(device) if masked else None


@functools.cache
def build(name, device):
    """The coupling of ``name``, with what it needs fitted on the device."""
    data, cond, _ = sample(device, torch.float32)
    moments = Moments.fit([(data, cond["label"])])
    distribution = functools.partial(
        NoiseDistribution.measure, batches=[data] * 40, moments=moments, generator=generator(device)
    )
    plan = lambda within, **options: SemidiscretePlan.fit(data, moments, **options)  # noqa: E731
    return parse_coupling(name, moments, distribution, plan)


def draw(name, device, dtype, masked):
    """Noise ``[CALLS, COUNT, *SHAPE]`` of the same data."""
    data, cond, mask = sample(device, dtype, masked)
    stream, coupling = generator(device, 1), build(name, device)
    noise = [coupling(data, cond=cond, mask=mask, generator=stream) for _ in range(CALLS)]
    expected = torch.empty_like(data)
    for one in noise:
        assert (one.dtype, one.device, one.stride()) == (dtype, data.device, expected.stride())
    return torch.stack(noise)


def statistics(noise, masked):
    """Numbers ``[CALLS x COUNT]``: what is drawn to the sample, lengths, one coordinate."""
    data, _, mask = sample(noise.device, masked=masked)
    noise = noise.double()
    inside = noise if mask is None else noise * mask
    sums = (inside * data).flatten(2).sum(2), inside.flatten(2).square().sum(2), noise[..., 0, 1, 3]
    return [one.flatten() for one in sums]


def kolmogorov_smirnov(one, other):
    """Greatest distance of the two distribution functions, times sqrt(n m / (n + m)); above 2.6: p < 3e-6."""
    both = torch.cat([one, other])
    shares = [
        torch.searchsorted(x.sort().values, both, right=True).double() / len(x) for x in (one.contiguous(), other)
    ]
    return float((shares[0] - shares[1]).abs().max()) * (len(one) * len(other) / len(both)) ** 0.5


@functools.cache
def reference(name, masked):
    """Statistics of noise in double precision on the CPU."""
    return statistics(draw(name, "cpu", torch.float64, masked), masked)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_same_distribution_in_every_dtype_and_mask(device, name, dtype, masked):
    if masked and not build(name, device).takes_mask:
        with pytest.raises(ValueError, match="does not take"):
            draw(name, device, dtype, masked)
        return
    found = statistics(draw(name, device, dtype, masked), masked)
    for ours, theirs in zip(found, reference(name, masked), strict=True):
        assert bool(ours.isfinite().all())
        assert kolmogorov_smirnov(ours, theirs.to(device)) < 2.6


@pytest.mark.parametrize("coupling", [KNN(8), LinearAssignment(), Shuffled(KNN(4))], ids=str)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_autocast_changes_no_bit(device, coupling):
    data, _, mask = sample(device, torch.float32, masked=True)
    for options in ({}, {"mask": mask}):
        plain = coupling(data, generator=generator(device), **options)
        with torch.autocast(device, torch.bfloat16):
            assert torch.equal(coupling(data, generator=generator(device), **options), plain)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_compiles_into_one_graph(device, masked):
    data, _, mask = sample(device, torch.float32, masked)
    backend = "inductor" if device == "cuda" else "aot_eager"
    coupling = KNN(8)
    compiled = torch.compile(lambda x: coupling(x, mask=mask), fullgraph=True, backend=backend)
    found = statistics(torch.stack([compiled(data) for _ in range(CALLS)]), masked)
    for ours, theirs in zip(found, reference("knn:k=8", masked), strict=True):
        assert kolmogorov_smirnov(ours, theirs.to(device)) < 2.6


@pytest.mark.parametrize("of_data", ["cpu", CUDA])
@pytest.mark.parametrize("of_plan", ["cpu", CUDA])
def test_a_plan_serves_data_on_another_device(of_plan, of_data):
    """Fitted there by moments on the CPU; its noise is where the data are."""
    data, cond, _ = sample(of_data, torch.float32)
    batches = [(data, cond["label"])]
    plan = SemidiscretePlan.fit(batches, Moments.fit(batches), max_steps=0, device=of_plan)
    assert {tensor.device.type for tensor in plan.tensors.values()} == {of_plan}
    for coupling in (Semidiscrete(plan, cond_key="label"), Quantile(plan, cond_key="label")):
        assert coupling(data, cond=cond, generator=generator(of_data)).device == data.device
    owner = plan.sample_of(torch.randn_like(data), cond["label"].cpu())
    assert owner.device == data.device
    assert torch.equal(cond["label"][owner], cond["label"])
    sampler = NoiseFirst(plan, 8)
    assert (sampler.noise(0).device.type, len(sampler.indices(0))) == (of_plan, 8)
    if "cuda" in (of_plan, of_data):
        wrong = {"index": torch.full((COUNT,), COUNT, device=of_data)}
        if of_plan == of_data:
            assert bool(Semidiscrete(plan, cond_key="label")(data, cond=wrong).isnan().flatten(1).any(dim=1).all())
        else:
            with pytest.raises(ValueError, match="index runs from 64 to 64"):
                Semidiscrete(plan, cond_key="label")(data, cond=wrong)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("coupling", [Independent(), KNN(8), LinearAssignment()], ids=str)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_pairing_beside_training_is_pairing_before_it(device, coupling, ahead):
    """On CUDA the thread has a stream of its own; a batch read too early would be another."""
    rows = torch.randn(8, 256, 128, generator=generator("cpu"))
    weight = torch.eye(128, device=device)

    def encode(item, generator):
        item = item.to(device)
        for _ in range(50):  # keeps the side stream busy while the consumer goes on
            item = item @ weight
        return item, torch.zeros(len(item), dtype=torch.int64)

    loader = PairedLoader(rows, coupling, encode, seed=3, device=device, ahead=ahead)
    sums = [(batch.noise * batch.data).sum(dim=1) for batch in loader]
    again = PairedLoader([(x, torch.zeros(256)) for x in rows], coupling, seed=3, device=device, ahead=0)
    for got, batch in zip(sums, again, strict=True):
        assert torch.allclose(got, (batch.noise * batch.data).sum(dim=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_ddp_on_one_device(device, tmp_path):
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        data, *_ = sample(device, torch.float32)
        network = torch.nn.Conv2d(2, 2, 3, padding=1).to(device)
        losses = []
        for model, across in ((DistributedDataParallel(network), True), (network, False)):
            for coupling in (LinearAssignment(across_ranks=across), KNN(4)):
                noise = coupling(data, generator=generator(device))
                losses.append((model(noise) - data).square().mean())
                losses[-1].backward()
        assert torch.allclose(torch.stack(losses[:2]), torch.stack(losses[2:]))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("k", [1, 2, 64])
def test_knn_never_waits_for_the_device(k):
    data, cond, mask = sample("cuda", torch.bfloat16, masked=True)
    moments, stream = Moments.fit([(data.float(), cond["label"])]).to("cuda"), generator("cuda")
    couplings = [KNN(k), *(KNN(k, center=word, moments=moments) for word in ("mean", "label", "channel"))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for coupling in couplings:
            for given in (None, mask):
                coupling(data, cond=cond, mask=given, generator=stream)
                coupling(data, cond=cond, mask=given)
                coupling.pair(data, data, cond=cond, mask=given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_knn_in_a_cuda_graph_draws_anew_at_every_replay(masked):
    data, _, mask = sample("cuda", torch.float32, masked)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            KNN(8)(data, mask=mask)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = KNN(8)(data, mask=mask)
    replays = []
    for _ in range(CALLS):
        graph.replay()
        replays.append(noise.clone())
    assert not torch.equal(replays[0], replays[1])
    found = statistics(torch.stack(replays), masked)
    for ours, theirs in zip(found, reference("knn:k=8", masked), strict=True):
        assert kolmogorov_smirnov(ours, theirs.cuda()) < 2.6


@pytest.mark.cuda
@needs_cuda
def test_a_row_that_is_not_finite_gets_nan():
    data, *_ = sample("cuda", torch.float32)
    data[3] = torch.nan
    noise = KNN(8)(data)
    assert bool(noise[3].isnan().all())
    assert int(noise.isfinite().flatten(1).all(dim=1).sum()) == COUNT - 1
