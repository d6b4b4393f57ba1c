"""A lock on a folder, so that two copies of a command do not write to it at once."""

import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

FILE = ".lock"
WAIT = 5.0  # seconds: processes of a command that was just killed may still be writing


@contextmanager
def folder_lock(folder: str | os.PathLike[str], file: str = FILE) -> Iterator[None]:
    """Hold ``folder`` against other processes and threads; it is made if need be, and goes if nothing was put there.

    The lock is the system's (flock) on a file that names host and process, so a process that dies, however it dies,
    leaves none behind. ValueError, after ``WAIT`` seconds, names who holds it.
    """
    path, until = Path(folder) / file, time.monotonic() + WAIT
    is_new = not path.parent.exists()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make the folder {path.parent}: {error.strerror}") from error
        with path.open("a+", encoding="utf-8") as lock:
            if not _acquire(lock):
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise ValueError(
                    f"{folder} is in use by {holder}, and two commands would overwrite each other; wait for it, stop "
                    f"it, or choose another folder"
                )
            try:
                if not _is_there(lock, path):  # its holder removed it between our opening and our locking
                    continue
                lock.truncate(0)
                with suppress(OSError):  # a full disk: the lock holds without its note
                    os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                yield
            finally:
                with suppress(OSError):  # Windows removes no open file
                    if _is_there(lock, path):
                        path.unlink()
                    if is_new:
                        path.parent.rmdir()  # an error unless it is empty
            return


@contextmanager
def shared_lock(folder: str | os.PathLike[str], ranks: Any) -> Iterator[None]:
    """Hold ``folder`` for the ``ranks`` of one command (accelerate's state); each is done when it is done.

    No rank goes on before the first one knows that no rank of another command is there.
    """
    own = FILE if ranks.is_main_process else f"{FILE}-{ranks.process_index}"
    if not ranks.is_main_process:
        ranks.wait_for_everyone()
    with folder_lock(folder, own):
        if ranks.is_main_process:
            for file in Path(folder).glob(f"{FILE}-*"):
                with folder_lock(folder, file.name):
                    pass
            ranks.wait_for_everyone()
        yield


def _is_there(lock: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _acquire(lock: IO[str]) -> bool:
    """Lock the open file until it is closed; False if another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            lock.seek(2**20)  # others may read what is before
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        text = f"{lock.name} cannot be locked here ({error.strerror}); start no second command on its folder"
        warnings.warn(text, stacklevel=4)
    return True
