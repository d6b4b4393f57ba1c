"""The files and commands of docs/launch.md: read, and started as two processes of this machine."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fixtures.commands import check, commands
from helpers import ROOT
from immiscible_diffusion.training.run_dir import RunDir

PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
TRAINING = ["train", "digits-flow", "--tiny", "--device", "cpu", "--out"]
JOB_FILE = ROOT / "examples" / "slurm" / "two_nodes.sbatch"
# Two tasks of a job step, as srun starts them.
SRUN = """#!/bin/bash
[[ $1 == --wait=* ]] && shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit $?; done
"""


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """``command``, with the programs of this Python before all others."""
    environment = os.environ | {"PATH": PROGRAMS} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_trained_by(started: subprocess.Popen, run: Path, processes: list[int]) -> None:
    """By that many processes, once for every start."""
    said = started.communicate(timeout=300)[0]
    assert started.returncode == 0, said
    assert [at_start["processes"] for at_start in RunDir(run).starts()] == processes
    assert (run / "weights" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.subprocess
def test_one_machine(tmp_path: Path) -> None:
    """The commands for CPUs, of the page itself."""
    page = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    found = [line for line in commands(page) if "--device cpu" in line]
    assert len(found) == 2
    for number, command in enumerate(found):
        words, run = shlex.split(command.replace("RECIPE", "digits-flow")), tmp_path / str(number)
        assert_trained_by(start([*words, "--tiny", "--out", str(run)]), run, [2])
        assert (run / "shards").exists() == ("--use_fsdp" in words)


def test_the_job_file_asks_for_what_it_says() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", JOB_FILE.read_text(encoding="utf-8"), re.MULTILINE))
    assert options["nodes"] == "2"
    assert options["gres"] == f"gpu:{options['ntasks-per-node']}"  # a process a GPU
    assert options["signal"].startswith("USR1@")  # on which training writes a checkpoint


@pytest.mark.slow
@pytest.mark.subprocess
def test_slurm(tmp_path: Path) -> None:
    for name, code in {"srun": SRUN, "scontrol": "#!/bin/sh\necho 127.0.0.1\n"}.items():
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o755)
    programs = f"{tmp_path}{os.pathsep}{PROGRAMS}"
    given = {"PATH": programs, "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "this"}
    job = start(["bash", str(JOB_FILE), *TRAINING[1:], str(tmp_path / "run")], **given)
    assert_trained_by(job, tmp_path / "run", [2])


def kubernetes() -> tuple[dict, dict, list[str]]:
    """The service, the job, and the command of its container."""
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((ROOT / "examples/kubernetes/elastic.yaml").read_text(encoding="utf-8"))
    return service, job, job["spec"]["template"]["spec"]["containers"][0]["command"]


def test_the_parts_of_the_kubernetes_file_fit_together() -> None:
    service, job, command = kubernetes()
    name, spec = service["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert check(shlex.join(command)).name == "imagenet-sd-scratch"
    options = dict(word.removeprefix("--").split("=") for word in command if word.startswith("--"))
    assert options["rdzv-endpoint"].split(":")[0] == f"{job['metadata']['name']}-0.{name}"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    assert options["nnodes"] == f"1:{spec['parallelism']}"
    assert spec["completions"] == spec["parallelism"]
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert options["out"].startswith(mounts["runs"])
    gpus = int(options["nproc-per-node"])  # of the one machine that may begin
    assert gpus * int(options["gradient_accumulation_steps"]) == gpus * spec["parallelism"]
    [shared] = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
    sizes = [shared["sizeLimit"], container["resources"]["requests"]["memory"]]
    assert int(sizes[0].removesuffix("Gi")) < int(sizes[1].removesuffix("Gi"))


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kubernetes_goes_on_without_a_pod_that_is_lost(tmp_path: Path) -> None:
    """Two pods of a process each, on this machine; the second is killed after the first checkpoint."""
    command = kubernetes()[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = f"--rdzv-endpoint=localhost:{port}"
    changed = {"--nnodes": "--nnodes=1:2", "--nproc-per-node": "--nproc-per-node=1", "--rdzv-endpoint": here}
    words = [changed.get(word.split("=")[0], word) for word in command[: command.index("train")]]
    words += [*TRAINING, str(tmp_path), "--steps", "1000", "--checkpoint_every", "20", "--preview_every", "0"]
    first = start(words)
    wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, first)  # the pods meet at the first
    second = start(words)
    wait_until((tmp_path / "checkpoint.pt").exists, first)
    for process in [*psutil.Process(second.pid).children(recursive=True), second]:
        process.kill()
    assert_trained_by(first, tmp_path, [2, 1])


def wait_until(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
