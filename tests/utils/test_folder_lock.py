"""Two commands on one folder: one holds it, the other is refused; a dead process holds nothing."""

import os
import socket
import subprocess
import sys

import pytest

from immiscible_diffusion.utils import folder_lock as module
from immiscible_diffusion.utils.folder_lock import folder_lock, shared_lock

HOLDER = """
import fcntl, sys, time
with open(sys.argv[1], "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("process 7 on elsewhere")
    file.flush()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.0)


def test_the_second_is_refused_and_learns_who_holds_the_folder(tmp_path):
    holder = rf"in use by process {os.getpid()} on {socket.gethostname()}"
    with folder_lock(tmp_path / "run"), pytest.raises(ValueError, match=holder), folder_lock(tmp_path / "run"):
        pass
    with folder_lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()  # nothing was put there
    with folder_lock(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    with folder_lock(tmp_path / "run"):
        pass
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["result"]


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_a_killed_process_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="process 7 on elsewhere"), folder_lock(tmp_path):
            pass
        other.kill()
    with folder_lock(tmp_path):
        pass


class Ranks:
    """Accelerate's view of one of the ranks of a command."""

    def __init__(self, rank):
        self.process_index, self.is_main_process = rank, rank == 0

    def wait_for_everyone(self):
        pass


def test_ranks_of_one_command_share_a_folder_and_no_other_command_comes_between(tmp_path):
    with shared_lock(tmp_path, Ranks(1)):
        with shared_lock(tmp_path, Ranks(2)):
            pass
        with pytest.raises(ValueError, match="in use"), shared_lock(tmp_path, Ranks(0)):
            pass
    with shared_lock(tmp_path, Ranks(0)), shared_lock(tmp_path, Ranks(1)):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked here"), folder_lock(tmp_path):
        pass
