"""The command line in two processes that know of each other (gloo), started by hand.

Not by a launcher, whose workers outlive it when it is killed.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(world: int, *arguments: str, path: Path | None = None) -> list[subprocess.Popen]:
    """``immiscible ...`` as ``world`` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = dict(os.environ)
        if path is not None:
            before = environment.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = os.pathsep.join([str(path), before])
        if world > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            environment |= {name: str(value) for name, value in places.items()}
            environment["MASTER_ADDR"] = "127.0.0.1"
        command = [sys.executable, "-m", "immiscible_diffusion", *arguments]
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> None:
    """Wait for all; their words, if one fails."""
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
