"""From the command line to the coupling it is a short way."""

import sys

from immiscible_diffusion.cli.main import main

TRACING = """
import sys
from immiscible_diffusion import Independent

FRAMES = []


class Tracing(Independent):
    def __call__(self, *arguments, **options):
        frame = sys._getframe(1)
        if "paired_loader" not in frame.f_code.co_filename:  # pairs that a preconditioned network is fitted to
            return super().__call__(*arguments, **options)
        while not FRAMES or (frame and FRAMES[-1] != "main main"):
            if "immiscible_diffusion" in frame.f_code.co_filename:
                file = frame.f_code.co_filename.rpartition("/")[2].removesuffix(".py")
                FRAMES.append(f"{file} {frame.f_code.co_name}")
            frame = frame.f_back
        return super().__call__(*arguments, **options)
"""


def test_at_most_seven_frames_from_main_to_the_coupling(tmp_path, monkeypatch):
    (tmp_path / "tracing_coupling.py").write_text(TRACING)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--coupling", "tracing_coupling:Tracing()", "--prefetch", "0", "--device", "cpu"]
    out = str(tmp_path / "run")
    assert main(["train", "digits-flow", "--tiny", "--preview-every", "0", "--out", out, *options]) == 0
    frames = sys.modules["tracing_coupling"].FRAMES
    assert frames[-1] == "main main"
    assert frames[0].startswith("paired_loader ")
    assert len(frames) <= 7, frames
