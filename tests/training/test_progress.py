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
    assert "loss 0.5000" in said


def test_a_bar_on_a_terminal_that_nothing_is_told_of(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(5, 2, "training"):
        pass
    assert "2/5" in sys.stderr.getvalue()


def test_a_log_has_no_guess_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setattr("immiscible_diffusion.utils.progress.PLAIN_SECONDS", -1)
    with Progress(5, 0, "training") as show:
        show.update(0)
        show.update(5)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "training: step 0/5"
    assert "left" in last
