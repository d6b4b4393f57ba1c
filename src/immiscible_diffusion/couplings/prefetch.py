"""Pairs batch n+1 in a background thread while the device trains on batch n."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling
from immiscible_diffusion.couplings.distributed import (
    fail_across_ranks,
    finish_across_ranks,
    pairing_group,
    ranks_in_use,
    uses_ranks,
)
from immiscible_diffusion.couplings.pool import pair_pool, pool_size
from immiscible_diffusion.couplings.schedule import at_step
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams

Pairs = Generator["Paired", None, None]
_END = object()
_across_ranks = threading.Lock()


@dataclass(frozen=True)
class Paired:
    """A batch and its noise: ``data, noise, cond = paired``; ``paired.mask`` where it has one."""

    data: Tensor
    noise: Tensor
    cond: dict[str, Tensor] | None = None
    mask: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.data, self.noise, self.cond))


def prefetch(
    loader: Iterable[Any],
    coupling: Coupling,
    encode: Callable[..., Any] | None = None,
    *,
    seed: int | None = None,
    streams: Callable[[int], RandomStreams] | None = None,
    device: torch.device | str | None = None,
    ahead: int = 1,
) -> Pairs:
    """``(data, noise, cond)`` for every batch of ``loader``, paired one batch ahead in a thread.

        for data, noise, cond in prefetch(loader, KNN(16), device="cuda"): ...

    Batch n gets the same noise whatever the timing and ``ahead``: it is drawn from ``streams(n)``.
    An error is raised when its batch is due. The thread ends with the loader, with an error, and
    when this is closed (``contextlib.closing``) or dropped, and closes the loader. In it gradients
    and autocast are off. On CUDA it has a stream of its own; on MPS, where two threads crash
    (pytorch/pytorch#197805), there is none, as with ``ahead=0``.

    Args:
        loader: of ``Batch``, data ``[B, *shape]``, or ``(data, labels)``, where labels are a tensor
            (then ``cond["label"]``) or a dictionary.
        coupling: draws from the generator it is given only. ``pool=m`` pairs m batches as one.
        encode: makes one of these of what the loader yields, in the thread; a VAE, say. What it
            draws it should draw from ``generator=``, given to it if it takes that: torch's own
            serves the training loop at the same time.
        seed: of the noise, one for each epoch (ranks differ anyway); by default a random one.
        streams: the random streams of batch n, by default ``RandomStreams(seed, n, rank)``.
        device: where data are moved before they are paired; by default they stay.
        ahead: batches (pools) paired in advance; 0 = no thread.

    Raises:
        ValueError: ``ahead`` is negative, or the loader yields something else.
    """
    if ahead < 0:
        raise ValueError(f"ahead must be a number of batches >= 0, got {ahead}")
    if uses_ranks(coupling) and torch.distributed.is_initialized():
        pairing_group()  # made by all ranks at the same place, which the thread's work is not
    device = torch.device(device) if device is not None else None
    ahead = 0 if device is not None and device.type == "mps" else ahead
    pool, stream = pool_size(coupling), _stream(device) if ahead else None
    work = _Pairing(coupling, encode, streams or _streams(seed), device, stream)
    taken = _taken(_ahead(work.run(loader, pool), ahead * pool))
    return _alone(taken) if work.ranks else taken


def _ahead(made: Generator["_Ready", None, None], count: int) -> Generator["_Ready", None, None]:
    return prefetch_iterator(made, count, name="prefetch") if count else made


def _streams(seed: int | None) -> Callable[[int], RandomStreams]:
    """Of batch n: those of this rank, as ranks are often seeded alike."""
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    rank = torch.distributed.get_rank() if ranks_in_use() else 0
    return lambda number: RandomStreams(seed, number, rank)


def _alone(taken: Pairs) -> Pairs:
    """``taken``, unless another prefetch across ranks is under way: ranks could not tell them."""
    if not _across_ranks.acquire(blocking=False):
        raise ValueError(
            "another prefetch across ranks is under way; finish it, or close it "
            "(contextlib.closing), before the next begins"
        )
    try:
        with contextlib.closing(taken):
            yield from taken
    finally:
        _across_ranks.release()


@dataclass(frozen=True)
class _Ready:
    """A paired batch, and the event after which a CUDA device has made it."""

    paired: Paired
    event: torch.cuda.Event | None

    def take(self) -> Paired:
        """The batch, for the stream of the caller."""
        if self.event is not None:
            paired = self.paired
            stream = torch.cuda.current_stream(paired.data.device)
            stream.wait_event(self.event)
            for tensor in (paired.data, paired.noise, paired.mask, *(paired.cond or {}).values()):
                if tensor is not None and tensor.is_cuda:
                    tensor.record_stream(stream)
        return self.paired


def _taken(made: Generator[_Ready, None, None]) -> Pairs:
    with contextlib.closing(made):
        yield from map(_Ready.take, made)


@dataclass(frozen=True)
class _Pairing:
    """What happens in the thread."""

    coupling: Coupling
    encode: Callable[..., Any] | None
    streams: Callable[[int], RandomStreams]
    device: torch.device | None
    stream: torch.cuda.Stream | None

    @property
    def ranks(self) -> bool:
        """Whether other processes wait for this one's batches."""
        return uses_ranks(self.coupling) and ranks_in_use()

    def run(self, loader: Iterable[Any], pool: int) -> Generator[_Ready, None, None]:
        """Fetch windows of ``pool`` batches and pair them."""
        items, number = iter(loader), 0
        numbered = enumerate(items)
        try:
            for window in self.told(_windows(lambda: self.fetch(numbered), pool)):
                yield from self.pair(window, number)
                number += len(window)
            if self.ranks:
                finish_across_ranks(
                    self.coupling, lambda n: self.on_device(number + n * pool).noise
                )
        finally:
            if callable(close := getattr(items, "close", None)):
                close()

    def told(self, windows: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """``windows``; an error among them is told to the other ranks, which would wait."""
        try:
            yield from windows
        except Exception:
            if self.ranks:
                fail_across_ranks()
            raise

    def fetch(self, items: Iterator[tuple[int, Any]]) -> Batch | None:
        """The next batch, encoded and on the device; None after the last."""
        with torch.no_grad(), self.on_stream():
            number, item = next(items, (0, _END))
            if item is _END:
                return None
            batch = as_batch(self.encoded(item, number))
            return batch if self.device is None else batch.to(self.device)

    def encoded(self, item: Any, number: int) -> Any:
        """What ``encode`` makes of ``item``, with a generator of this batch if it takes one."""
        if self.encode is None:
            return item
        if not _takes_generator(self.encode):
            return self.encode(item)
        return self.encode(item, generator=self.on_device(number).encode)

    def on_device(self, number: int) -> RandomStreams:
        """The streams of batch ``number``, where the data are moved to."""
        streams = self.streams(number)
        return streams if self.device is None else replace(streams, device=self.device)

    def pair(self, window: list[Batch], number: int) -> list[_Ready]:
        """The batches from ``number`` on with their noise."""
        with torch.no_grad(), self.on_stream():
            streams = replace(self.streams(number), device=window[0].data.device)
            coupling = at_step(self.coupling, streams.step)
            noises = pair_pool(coupling, window, generator=streams.noise)
            return [
                _Ready(Paired(batch.data, noise, batch.cond, batch.mask), _event(batch.data))
                for batch, noise in zip(window, noises, strict=True)
            ]

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Within, CUDA work goes to the thread's stream and device."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def _takes_generator(encode: Callable[..., Any]) -> bool:
    try:
        return "generator" in inspect.signature(encode).parameters
    except (TypeError, ValueError):  # of what is not written in Python
        return False


def as_batch(item: Any) -> Batch:
    """What a loader yields as a ``Batch``; ValueError if it is none of the known kinds."""
    if isinstance(item, Batch):
        return item
    data, labels = item, None
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        data, labels = item if len(item) == 2 else (item[0], None)
    if isinstance(data, Tensor) and (labels is None or isinstance(labels, (Tensor, dict))):
        return Batch(data, {"label": labels} if isinstance(labels, Tensor) else labels)
    kinds = [type(part).__name__ for part in item] if isinstance(item, (tuple, list)) else ""
    raise ValueError(
        f"expected a Batch, a tensor, or (data, labels) with labels a tensor or a dictionary, got "
        f"{type(item).__name__} {kinds}; give encode= a function that makes one of them"
    )


def _windows(fetch: Callable[[], Batch | None], size: int) -> Generator[list[Batch], None, None]:
    """Lists of ``size`` batches, the last perhaps shorter; an error comes after those before it."""
    more = True
    while more:
        window: list[Batch] = []
        failed: Exception | None = None
        try:
            while len(window) < size and (batch := fetch()) is not None:
                window.append(batch)
        except Exception as error:  # noqa: BLE001 - raised below
            failed = error
        more = len(window) == size
        if window:
            yield window
        if failed is not None:
            raise failed


def _stream(device: torch.device | None) -> torch.cuda.Stream | None:
    """A new stream on ``device`` (None: the current one), after what the caller's has to do."""
    if device is None and torch.cuda.is_available() and torch.cuda.is_initialized():
        device = torch.device("cuda", torch.cuda.current_device())
    if device is None or device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _event(data: Tensor) -> torch.cuda.Event | None:
    """Reached when the current stream has done its work."""
    return torch.cuda.current_stream(data.device).record_event() if data.is_cuda else None
