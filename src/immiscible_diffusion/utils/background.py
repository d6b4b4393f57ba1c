"""An iterator run in a background thread, a counted number of items ahead of its consumer."""

import sys
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


def prefetch_iterator(
    source: Generator[T, None, None], ahead: int, *, name: str, finish: bool = True
) -> Generator[T, None, None]:
    """The items of ``source``, made in a thread.

    The thread works by tickets: it may make item n + ``ahead`` once the consumer has asked for
    item n. So how many items are made depends on how many were asked for, never on timing.

    The thread starts with the first ``next``. An error of ``source`` is raised, with its traceback,
    by the ``next`` that would have returned the item. The thread is told to end, and waited for,
    when the last item was returned, an error was raised, or this generator is closed or collected;
    it then closes ``source``.

    Args:
        source: what to run; from now on it belongs to the thread.
        ahead: items beyond the one asked for, >= 1.
        name: of the thread.
        finish: when closed early, still make the items that the thread has tickets for, as other
            processes may wait for them.
    """
    worker = _Worker(source, name)
    try:
        for _ in range(ahead):
            worker.ask()
        while True:
            worker.ask()
            yield worker.asked.popleft().result()
    except StopIteration:
        return
    finally:
        worker.end(finish)


class _Worker(Generic[T]):
    """The consumer's side of a thread, which itself knows only its source and its tickets."""

    def __init__(self, source: Generator[T, None, None], name: str) -> None:
        self.tickets: SimpleQueue[Future[T] | None] = SimpleQueue()
        self.asked: deque[Future[T]] = deque()
        self.thread = threading.Thread(
            target=_work, args=(source, self.tickets), daemon=True, name=name
        )
        self.thread.start()

    def ask(self) -> None:
        ticket: Future[T] = Future()
        self.asked.append(ticket)
        self.tickets.put(ticket)

    def end(self, finish: bool) -> None:
        if not finish:
            for ticket in self.asked:
                ticket.cancel()
        self.tickets.put(None)
        # The garbage collector may be at work in the thread itself, or the interpreter at its end,
        # when threads like this one have stopped for good.
        if self.thread is not threading.current_thread() and not sys.is_finalizing():
            self.thread.join()


def _work(source: Generator[T, None, None], tickets: "SimpleQueue[Future[T] | None]") -> None:
    """Fill tickets with items, until None comes; after the end or an error there are no more."""
    ended = False
    while (ticket := tickets.get()) is not None:
        if ended or not ticket.set_running_or_notify_cancel():
            continue
        try:
            ticket.set_result(next(source))
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            ticket.set_exception(error)
            ended = True
        del ticket  # it holds an item
    source.close()
