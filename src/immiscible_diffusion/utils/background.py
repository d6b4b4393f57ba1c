"""An iterator run in a background thread, a fixed number of items ahead of its consumer."""

import sys
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def prefetch_iterator(
    source: Generator[T, None, None], ahead: int, *, name: str, finish: bool = True
) -> Generator[T, None, None]:
    """Yield the items of ``source``, which are computed in a thread called ``name``.

    The thread may compute item n + ``ahead`` (>= 1) once the consumer has requested item n. So how many items are
    computed depends on how many were requested, never on timing.

    The thread starts with the first ``next``. An error of ``source`` is raised, with its traceback, by the ``next``
    that would have returned the item. The thread ends, and is joined, when the last item was returned, an error was
    raised, or this generator is closed or collected; it then closes ``source``. With ``finish``, one closed early
    still computes the items that were requested or ahead, as other processes may wait for them.
    """
    requests: SimpleQueue[Future[T] | None] = SimpleQueue()
    pending: deque[Future[T]] = deque()
    # The thread must not refer to this generator, or it would never be collected.
    thread = threading.Thread(target=_compute, args=(source, requests), daemon=True, name=name)
    thread.start()

    def request() -> None:
        pending.append(Future())
        requests.put(pending[-1])

    try:
        for _ in range(ahead):
            request()
        while True:
            request()
            yield pending.popleft().result()
    except StopIteration:
        return
    finally:
        if not finish:
            for future in pending:
                future.cancel()
        requests.put(None)
        # The garbage collector may run in the thread itself, or at the interpreter's end, when
        # daemon threads have stopped for good.
        if thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join()


def _compute(source: Generator[T, None, None], requests: "SimpleQueue[Future[T] | None]") -> None:
    """Fulfil requests until None comes; after the end or an error there are no more items."""
    ended = False
    while (future := requests.get()) is not None:
        if ended or not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(next(source))
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            future.set_exception(error)
            ended = True
        del future  # it holds an item
    source.close()
