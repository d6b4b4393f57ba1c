"""A loader whose batches come with their noise, paired in a thread while the device trains."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import valid_positions
from immiscible_diffusion.couplings.base import Coupling, Rng, as_coupling
from immiscible_diffusion.couplings.distributed import fail_across_ranks, pairing_group, ranks_in_use
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import RandomStreams, hash_seed

TIMED_EVERY = 10  # on an accelerator, where taking the time waits for it
Encode = Callable[[Any, torch.Generator], Any]
_across_ranks = threading.Lock()


@dataclass(frozen=True)
class PairedBatch:
    """A batch and its noise: ``data, noise, cond = batch``.

    Attributes:
        data: ``[B, *shape]``.
        noise: like ``data``.
        cond: the conditions of the data, each ``[B, ...]``, or None.
        mask: boolean, broadcasts to ``data``, True where data are valid; None = everywhere.
        rng: the random streams of this batch, on the device of the data.
        pairing_seconds: what pairing took (of a pool: this batch's part); None where it was not measured.
        loading_seconds: how long the loader let this batch be waited for.
    """

    data: Tensor
    noise: Tensor
    cond: Cond | None = None
    mask: Tensor | None = None
    rng: RandomStreams = field(default_factory=lambda: RandomStreams(0))
    pairing_seconds: float | None = None
    loading_seconds: float = 0.0

    def __iter__(self) -> Iterator[Any]:
        return iter((self.data, self.noise, self.cond))

    def __getitem__(self, index: int) -> Any:
        return (self.data, self.noise, self.cond)[index]


PairedBatches = Generator[PairedBatch, None, None]
Loaded = tuple[Batch, RandomStreams, float]
Events = Generator[tuple[PairedBatch, torch.cuda.Event | None], None, None]


class PairedLoader:
    """The batches of ``loader`` with their noise, paired one batch ahead in a thread.

        for data, noise, cond in PairedLoader(loader, KNN(16), device="cuda"): ...

    Batch n gets the same noise whatever the timing and ``ahead``: it is drawn from ``streams(n)``. An error is raised
    when its batch is due. The thread ends with the loader, with an error, and when this is closed (``with``) or the
    iterator dropped; it then closes the loader. In the thread gradients and autocast are off. On CUDA it has a stream
    of its own; on MPS, where two threads crash (pytorch/pytorch#197805), there is none, as with ``ahead=0``.

    Args:
        loader: any iterable of ``Batch``, data ``[B, *shape]``, or ``(data, labels)``, where labels are a tensor (then
            ``cond["label"]``) or a dictionary. ``loader.starting_at(n)``, if there is one, gives the batches from n on
            without making those before.
        coupling: draws from the generator that it is given only. One with a ``pool_size`` of m pairs batches 0 to
            m - 1 as one, then the next m.
        encode: ``encode(item, generator)`` makes one of these of what the loader yields, in the thread; a VAE, say. It
            should draw from ``generator``: torch's own serves the training loop at the same time.
        seed: seed of the noise; a random one by default. Every pass over the loader, and every rank, draws different
            noise.
        streams: the random streams of batch n, instead of ``seed``.
        device: where data are moved before they are paired; by default they stay.
        ahead: batches (pools) paired in advance; 0 = no thread.
        start: index of the first batch to yield in the first pass. Noise is the same as if all batches had been asked
            for.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        coupling: Coupling,
        encode: Encode | None = None,
        *,
        seed: int | None = None,
        streams: Callable[[int], RandomStreams] | None = None,
        device: torch.device | str | None = None,
        ahead: int = 1,
        start: int = 0,
    ) -> None:
        if ahead < 0 or start < 0:
            raise ValueError(f"ahead and start must be 0 or more, got {ahead} and {start}")
        self.loader, self.encode, self.streams = loader, encode, streams
        self.coupling = as_coupling(coupling)
        self.across_ranks = ranks_in_use() and self.coupling.across_ranks
        if self.across_ranks:
            pairing_group(self.across_ranks)  # made by all ranks at the same place, which the thread's work is not
        self.device = None if device is None else torch.device(device)
        self.ahead = 0 if self.device is not None and self.device.type == "mps" else ahead
        self.start = start
        self._seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._rank = torch.distributed.get_rank() if ranks_in_use() else 0
        self._epochs = itertools.count()
        self._iterators: WeakSet[PairedBatches] = WeakSet()

    def __enter__(self) -> "PairedLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads of all iterators over this loader."""
        for iterator in list(self._iterators):
            iterator.close()

    def __iter__(self) -> PairedBatches:
        """Every batch with its noise, computed in a thread ahead of the consumer."""
        stream = _side_stream(self.device) if self.ahead else None
        source = _without_gradients(self._pair(), stream)
        if self.ahead:
            ahead = self.ahead * self.coupling.pool_size
            source = prefetch_iterator(source, ahead, name="prefetch")
        iterator = _on_the_callers_stream(source)
        iterator = _one_across_ranks(iterator) if self.across_ranks else iterator
        self._iterators.add(iterator)
        return iterator

    def _pair(self) -> PairedBatches:
        """Pair pool by pool; these begin at multiples of their size from batch 0.

        Of a pool that ``start`` lies within, the batches before it are paired too and dropped.
        """
        epoch, size = next(self._epochs), self.coupling.pool_size
        start = self.start if epoch == 0 else 0
        index = start - start % size
        for pool in self._pools(index, epoch):
            batches = [batch for batch, *_ in pool]
            rng, device = pool[0][1], batches[0].data.device
            timed = device.type == "cpu" or index // size % TIMED_EVERY == 0
            began = _time_when_done(device) if timed else 0.0
            coupling, one = self.coupling.at_step(rng.step), batches[0]
            if size == 1:
                noises = [coupling(one.data, cond=one.pairing_cond, mask=one.mask, generator=rng.noise)]
            else:
                noises = pair_pool(coupling, batches, generator=rng.noise)
            seconds = (_time_when_done(device) - began) / len(pool) if timed else None
            for (batch, rng, loading), noise in zip(pool, noises, strict=True):
                if index >= start:
                    yield PairedBatch(batch.data, noise, batch.cond, batch.mask, rng, seconds, loading)
                index += 1
        if self.across_ranks:
            self.coupling.finish_ranks(lambda n: self._streams_of(index + n * size, epoch).noise)

    def _pools(self, start: int, epoch: int) -> Iterator[list[Loaded]]:
        """Lists of ``pool_size`` batches, the last perhaps shorter.

        An error comes after the batches before it, and other ranks, who would wait, hear of it.
        """
        pool: list[Loaded] = []
        try:
            for batch in self._batches(start, epoch):
                pool.append(batch)
                if len(pool) == self.coupling.pool_size:
                    yield pool
                    pool = []
        except Exception:
            if pool:
                yield pool
            if self.across_ranks:
                fail_across_ranks(pairing_group(self.across_ranks))
            raise
        if pool:
            yield pool

    def _batches(self, start: int, epoch: int) -> Iterator[Loaded]:
        """The batches from ``start`` on, encoded and on their device, their random streams, and seconds of loading."""
        if hasattr(self.loader, "starting_at"):
            items = iter(self.loader.starting_at(start))
        else:
            items = iter(self.loader)
            for _ in itertools.islice(items, start):
                pass
        try:
            began = time.perf_counter()
            for index, item in enumerate(items, start):
                loading = time.perf_counter() - began
                rng = self._streams_of(index, epoch)
                batch = as_batch(item if self.encode is None else self.encode(item, rng.encode))
                batch = batch if self.device is None else batch.to(self.device)
                yield batch, replace(rng, device=batch.data.device), loading
                began = time.perf_counter()
        finally:
            if callable(close := getattr(items, "close", None)):
                close()

    def _streams_of(self, index: int, epoch: int) -> RandomStreams:
        """The random streams of batch ``index``, where data are moved to."""
        if self.streams is not None:
            streams = self.streams(index)
        else:
            seed = hash_seed(self._seed, "epoch", epoch) if epoch else self._seed
            streams = RandomStreams(seed, index, self._rank)
        return streams if self.device is None else replace(streams, device=self.device)


def as_batch(item: Any) -> Batch:
    """Make a ``Batch`` of what a loader yields; ValueError if it is none of the known types."""
    match item:
        case Batch():
            return item
        case (Tensor() as data) | [Tensor() as data]:
            return Batch(data)
        case [Tensor() as data, Tensor() as labels]:
            return Batch(data, {"label": labels})
        case [Tensor() as data, (None | dict()) as cond]:
            return Batch(data, cond)
    types = [type(part).__name__ for part in item] if isinstance(item, (tuple, list)) else ""
    expected = "expected a Batch, a tensor, or (data, labels) with labels a tensor or a dictionary"
    advice = "give encode=lambda item, generator: Batch(data, cond, index=index)"
    raise ValueError(f"{expected}, got {type(item).__name__} {types}; {advice}")


def _time_when_done(device: torch.device) -> float:
    """Seconds on a clock, read once ``device`` has done its work."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


# -- the thread and its device ---------------------------------------------------------------------


def _without_gradients(pairs: PairedBatches, stream: torch.cuda.Stream | None) -> Events:
    """Every batch, made on ``stream``, with the event after which a CUDA device has made it."""
    with contextlib.closing(pairs):
        while True:
            with torch.no_grad(), torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                batch = next(pairs, None)
                if batch is None:
                    return
                device = batch.data.device
                on_cuda = device.type == "cuda"
                event = torch.cuda.current_stream(device).record_event() if on_cuda else None
            yield batch, event


def _on_the_callers_stream(source: Events) -> PairedBatches:
    """The batches, ready for the stream of the caller."""
    with contextlib.closing(source):
        for batch, event in source:
            if event is not None:
                stream = torch.cuda.current_stream(batch.data.device)
                stream.wait_event(event)
                for tensor in (batch.data, batch.noise, batch.mask, *(batch.cond or {}).values()):
                    if tensor is not None and tensor.is_cuda:
                        tensor.record_stream(stream)
            yield batch


def _side_stream(device: torch.device | None) -> torch.cuda.Stream | None:
    """A new stream on ``device`` (None: the current one), after what the caller's has to do."""
    if device is None and torch.cuda.is_available() and torch.cuda.is_initialized():
        device = torch.device("cuda", torch.cuda.current_device())
    if device is None or device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _one_across_ranks(batches: PairedBatches) -> PairedBatches:
    """``batches``, unless others are being paired across ranks: ranks could not tell them apart."""
    if not _across_ranks.acquire(blocking=False):
        raise ValueError("another PairedLoader across ranks is under way; close it (with) first")
    try:
        with contextlib.closing(batches):
            yield from batches
    finally:
        _across_ranks.release()


# -- several batches paired as one -----------------------------------------------------------------


@torch.no_grad()
def pair_pool(coupling: Coupling, batches: Sequence[Batch], *, generator: Rng = None) -> list[Tensor]:
    """Noise for each of ``batches``, paired over all of them.

    Batches whose data have the same shape, dtype and device form one batch for the coupling; those groups are paired
    one after the other, in the order of their first batches. A coupling that works across ranks needs the same shapes
    in the same order on all ranks. ValueError where batches of a group differ in names or shapes of conditions.
    """
    groups: dict[Any, list[int]] = {}
    for index, batch in enumerate(batches):
        form = (batch.data.shape[1:], batch.data.dtype, batch.data.device)
        groups.setdefault(form, []).append(index)
    coupling = as_coupling(coupling).unpooled()
    noises: dict[int, Tensor] = {}
    for rows in groups.values():
        joined = _joined([batches[index] for index in rows])
        noise = coupling(joined.data, cond=joined.pairing_cond, mask=joined.mask, generator=generator)
        noises |= zip(rows, noise.split([len(batches[index]) for index in rows]), strict=True)
    return [noises[index] for index in range(len(batches))]


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all."""
    if len(batches) == 1:
        return batches[0]
    names = [sorted(batch.cond or {}) for batch in batches]
    if any(other != names[0] for other in names):
        raise ValueError(f"a pool must have the same conditions, got {names}; or use pool=1")
    try:
        cond = {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in names[0]}
    except RuntimeError as error:
        raise ValueError(f"conditions of a pool differ ({error}); pad them to one shape") from error
    mask = None
    if any(batch.mask is not None for batch in batches):
        everywhere = torch.ones((), dtype=torch.bool, device=batches[0].data.device)
        masks = [everywhere if batch.mask is None else batch.mask for batch in batches]
        valid = map(valid_positions, masks, [batch.data for batch in batches])
        mask = torch.cat([part for part in valid if part is not None])
    known = [batch.index for batch in batches if batch.index is not None]
    index = torch.cat(known) if len(known) == len(batches) else None
    return Batch(torch.cat([batch.data for batch in batches]), cond or None, mask, index)
