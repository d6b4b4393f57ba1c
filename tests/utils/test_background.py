import subprocess
import sys
import threading
import time

import pytest

from immiscible_diffusion.utils.background import prefetch_iterator


class Counted:
    """A source that counts its items, and whether it was closed."""

    def __init__(self, fails_at: int = -1, length: int = 10**9) -> None:
        self.count, self.closed, self.fails_at, self.length = 0, False, fails_at, length

    def __iter__(self):
        try:
            for number in range(self.length):
                if number == self.fails_at:
                    raise KeyError(number)
                self.count += 1
                yield number
        finally:
            self.closed = True


def settles_at(source: Counted, count: int) -> bool:
    deadline = time.monotonic() + 20
    while source.count < count and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)  # it would now run on if it could
    return source.count == count


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_the_thread_computes_what_was_requested_and_no_more(ahead):
    source = Counted()
    items = prefetch_iterator(iter(source), ahead, name="requests")
    assert settles_at(source, 0)
    for asked in range(1, 5):
        assert next(items) == asked - 1
        assert settles_at(source, asked + ahead)
    items.close()
    assert source.count == 4 + ahead
    assert source.closed
    assert not alive("requests")


@pytest.mark.parametrize("finish", [True, False])
def test_closed_early_it_finishes_its_requests_or_stops(finish):
    first, go = threading.Event(), threading.Event()

    def slow():
        for number in range(100):
            if number == 1:
                first.set()
                assert go.wait(20)
            items_computed.append(number)
            yield number

    items_computed: list[int] = []
    items = prefetch_iterator(slow(), 3, name="finish", finish=finish)
    next(items)
    assert first.wait(20)
    threading.Timer(0.2, go.set).start()
    items.close()  # while item 1 is being computed, with requests for 2 and 3
    assert items_computed == ([0, 1, 2, 3] if finish else [0, 1])
    assert not alive("finish")


def test_an_error_is_raised_after_the_items_before_it_with_its_traceback():
    source = Counted(fails_at=3)
    items = prefetch_iterator(iter(source), 5, name="error")
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError) as caught:
        next(items)
    assert "__iter__" in [entry.name for entry in caught.traceback]
    assert source.closed
    assert not alive("error")
    assert list(items) == []


def test_the_end_ends_it():
    source = Counted(length=4)
    assert list(prefetch_iterator(iter(source), 2, name="end")) == [0, 1, 2, 3]
    assert not alive("end")


@pytest.mark.subprocess
def test_a_program_ends_without_closing_the_iterator():
    """Module globals are collected when daemon threads are frozen: to wait for one would hang."""
    code = (
        "import itertools; from immiscible_diffusion.utils.background import prefetch_iterator\n"
        "items = prefetch_iterator((n for n in itertools.count()), 2, name='x'); next(items)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
