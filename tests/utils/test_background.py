import subprocess
import sys
import threading
import time

import pytest

from immiscible_diffusion.utils.background import prefetch_iterator


class Counted:
    """A source that counts what it made, and knows whether it was closed."""

    def __init__(self, fails_at: int = -1, length: int = 10**9) -> None:
        self.made, self.closed, self.fails_at, self.length = 0, False, fails_at, length

    def __iter__(self):
        try:
            for number in range(self.length):
                if number == self.fails_at:
                    raise KeyError(number)
                self.made += 1
                yield number
        finally:
            self.closed = True


def settled(source: Counted, made: int) -> bool:
    deadline = time.monotonic() + 20
    while source.made < made and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)  # it would now run on if it could
    return source.made == made


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_the_thread_works_on_what_it_has_tickets_for_and_no_more(ahead):
    source = Counted()
    items = prefetch_iterator(iter(source), ahead, name="tickets")
    assert settled(source, 0)
    for asked in range(1, 5):
        assert next(items) == asked - 1
        assert settled(source, asked + ahead)
    items.close()
    assert source.made == 4 + ahead
    assert source.closed
    assert not alive("tickets")


@pytest.mark.parametrize("finish", [True, False])
def test_closed_early_it_finishes_what_it_may_or_stops(finish):
    first, go = threading.Event(), threading.Event()

    def slow():
        for number in range(100):
            if number == 1:
                first.set()
                assert go.wait(20)
            made.append(number)
            yield number

    made: list[int] = []
    items = prefetch_iterator(slow(), 3, name="finish", finish=finish)
    next(items)
    assert first.wait(20)
    threading.Timer(0.2, go.set).start()
    items.close()  # while item 1 is in the making, with tickets for 2 and 3
    assert made == ([0, 1, 2, 3] if finish else [0, 1])
    assert not alive("finish")


def test_an_error_comes_after_the_items_before_it_and_says_where():
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


def test_a_program_ends_though_its_thread_was_never_told_to():
    """Module globals are collected when daemon threads are frozen: to wait for one would hang."""
    code = (
        "import itertools; from immiscible_diffusion.utils.background import prefetch_iterator\n"
        "items = prefetch_iterator((n for n in itertools.count()), 2, name='x'); next(items)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
