"""Progress on a terminal and in a log."""

import io
import sys

from immiscible_diffusion.utils.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_bar_on_a_terminal_goes_from_start_to_end(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress(5, 0, "training") as show:
        for step in range(1, 6):
            show.update(step, loss=0.5, pairing=0.01)
    said = sys.stderr.getvalue()
    assert "training" in said
    assert "5/5" in said
    assert "loss=0.5" in said


def test_a_bar_on_a_terminal_that_nothing_is_told_of(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(5, 2, "training"):
        pass
    assert "2/5" in sys.stderr.getvalue()


def test_a_log_gets_lines_and_quiet_gets_none(capsys):
    for quiet in (False, True):
        with Progress(5, 0, "training", quiet=quiet) as progress:
            progress.update(5, "too slow", loss=0.25)
        error = capsys.readouterr().err
        assert ("5/5" in error and "loss=0.25, too slow" in error) != quiet


def test_no_bar_where_nothing_is_left(capsys):
    for total in (50, 110):
        with Progress(total, 110, "training"):
            pass
    assert not capsys.readouterr().err
