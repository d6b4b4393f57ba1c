import json
import subprocess
import sys

import psutil
import pytest
from PIL import Image

from immiscible_diffusion.cli.compare import DEFAULT_COUPLINGS, dry_run, trial_lines
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.experiments.compare.plan import Plan, slug
from immiscible_diffusion.experiments.compare.sweep import Sweep
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_record, write_record

MODULE = """
from dataclasses import dataclass
import torch
from immiscible_diffusion import Coupling

@dataclass(frozen=True)
class Halved(Coupling):
    k: int = 1
    takes_noise = False

    def choose(self, data, noise, cond, mask, generator):
        return torch.randn(data.shape, generator=generator) * (1 - 0.01 * self.k)
"""


def compare(folder, *options: str) -> int:
    base = ["compare", "digits-flow", "--tiny", "--device", "cpu", "--out", str(folder)]
    return main([*base, "--seeds", "0", "1", *options])


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.subprocess
def test_a_comparison_end_to_end_with_a_coupling_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # found in the working folder, by the workers too
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "out"
    named = ("knn:k=4,center=mean", "shuffled:knn:k=4,center=mean", "mine:Halved(k=3)")
    options = [word for name in named for word in ("--coupling", name)]
    assert compare(folder, *options, "--workers", "2") == 0
    found = results(folder)
    assert [c["name"] for c in found["couplings"]] == ["independent", *named]
    assert len(found["trials"]) == 8
    assert all(trial["finished"] and trial["pairing_ms"] > 0 for trial in found["trials"])
    steps = {(q["step"], q["sampling_steps"]) for q in found["trials"][0]["metrics"]}
    assert steps == {(4, 1), (4, 2), (8, 1), (8, 2)}
    trajectories = [folder / trial["trajectory"] for trial in found["trials"] if trial["trajectory"]]
    assert len(trajectories) == 4  # of the first seed
    with Image.open(trajectories[0]) as image:  # 3 images, two rows each; 2 steps and the image
        assert image.size == (3 * 9 - 1, 6 * 9 - 1)
    page = (folder / "report.html").read_text()
    assert "mine:Halved(k=3), noise to image" in page
    assert "mine:Halved(k=3)" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "report:" in capsys.readouterr().out
    # The same start noise and initial weights: equal up to the first step's noise only.
    before = (folder / "results.csv").read_text()
    assert compare(folder, *options, "--workers", "1") == 0  # nothing left to do
    assert (folder / "results.csv").read_text() == before


@pytest.mark.subprocess
def test_workers_do_not_change_the_figures(tmp_path):
    options = ("--coupling", "knn:k=4")
    assert compare(tmp_path / "one", *options, "--workers", "1") == 0
    assert compare(tmp_path / "two", *options, "--workers", "2") == 0

    def qualities(folder):
        return [trial["metrics"] for trial in results(folder)["trials"]]

    assert qualities(tmp_path / "one") == qualities(tmp_path / "two")


def test_job_array_list_trial_gather(tmp_path, capsys):
    options = ("--coupling", "assignment")
    assert compare(tmp_path, *options, "--list") == 0
    assert capsys.readouterr().out.count("open") == 4
    assert compare(tmp_path, *options, "--trial", "1") == 0
    assert compare(tmp_path, *options, "--list") == 0
    lines = capsys.readouterr().out.strip().splitlines()[-4:]
    assert [line.split()[1] for line in lines] == ["open", "finished", "open", "open"]
    assert compare(tmp_path, *options, "--trial", "0") == 0
    assert compare(tmp_path, *options, "--gather") == 0  # a report of half the comparison
    assert len(results(tmp_path)["trials"]) == 2
    assert (tmp_path / "report.html").exists()


def test_a_dry_run_shows_the_trials_and_their_time_and_writes_nothing(tmp_path, capsys):
    options = ("--coupling", "assignment", "matched:assignment")
    assert compare(tmp_path / "out", *options, "--dry-run") == 0
    text = capsys.readouterr().out
    assert text.count(" open ") == 6
    assert "trainings left, of 8 steps: 4;" in text  # matched ones are evaluated along with the others
    assert text.count("time:") == 2  # of every coupling once
    assert "scores with other samplers" not in text
    assert not list(tmp_path.iterdir())
    assert compare(tmp_path / "out", *options, "--trial", "0") == 0
    assert compare(tmp_path / "out", *options, "--dry-run", "--controls") == 0
    lines = capsys.readouterr().out.splitlines()
    states = [line.split()[1] for line in lines if line.endswith(("seed 0", "seed 1"))]
    assert states == ["finished", "open", "open", "open", "open", "open"]
    assert "trainings left, of 8 steps: 3;" in lines[-1]
    shifts, starts = 6 * 5, 2 * 5  # of every trial, and of the baseline's two; in 1 and in 2 sampling steps
    assert f"and {2 * (shifts + starts)} scores with other samplers at the end" in lines


def last_line_of_a_dry_run(plan: Plan, workers: int, capsys) -> str:
    assert dry_run(plan, "cpu", workers, Sweep()) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_the_time_of_a_dry_run_is_that_of_the_steps_left_in_processes_that_take_trial_after_trial(
    tiny, tmp_path, monkeypatch, capsys
):
    seen = []

    def seconds(recipe, device, write, dataset):
        seen.append(dataset)
        return 8.0 if recipe.coupling == "independent" else 16.0  # of all 8 steps

    monkeypatch.setattr("immiscible_diffusion.cli.compare.dry_training", seconds)
    plan = Plan(tmp_path / "out", tiny, ("independent", "assignment"), (0, 1))
    assert "steps: 4; training alone takes about 48 s in 1 process;" in last_line_of_a_dry_run(plan, 1, capsys)
    assert "about 24 s in 3 processes;" in last_line_of_a_dry_run(plan, 3, capsys)  # 8 + 16, 16, 8
    assert seen[0] is seen[1]  # the data are loaded once
    assert not list(tmp_path.iterdir())
    write_record(plan.trial_dir(plan.trials[0]) / "finished.json", {"steps": 8})
    assert "steps: 3; training alone takes about 40 s in 1 process;" in last_line_of_a_dry_run(plan, 1, capsys)
    run = RunDir(plan.trial_dir(plan.trials[3]))
    run.root.mkdir(parents=True)
    run.save_checkpoint({"step": 6})
    assert "takes about 28 s in 1 process;" in last_line_of_a_dry_run(plan, 1, capsys)  # 16 + 8 + 4
    for trial in plan.trials:
        write_record(plan.trial_dir(trial) / "finished.json", {"steps": 8})
    assert last_line_of_a_dry_run(plan, 1, capsys).endswith("steps: 0")


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("torch_fidelity", ("--eval.features", "inception")),
        ("guidances need a network", ("--guidances", "1", "2")),
        ("launched as 2 ranks", ()),
    ],
)
def test_a_dry_run_says_what_the_comparison_would_be_refused_for(cause, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    if "ranks" in cause:
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert compare(tmp_path / "out", *options, "--dry-run") == 2
    first, *_ = said = capsys.readouterr().out.splitlines()
    assert first.startswith("missing: ")
    assert cause in first
    assert "missing: nothing" not in said
    assert compare(tmp_path / "out", *options) == 2  # for the same reason
    assert cause in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_does_not_count_a_start_that_is_left_out(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("immiscible_diffusion.cli.compare.dry_training", lambda *_: 8.0)
    monkeypatch.setattr("immiscible_diffusion.experiments.compare.sweep.MAX_DIM", 10)
    plan = Plan(tmp_path, tiny, ("independent",), (0,))
    with pytest.warns(UserWarning, match="the pruned start is left out"):
        assert dry_run(plan, "cpu", 1, Sweep(controls=True)) == 0
    assert "and 16 scores with other samplers" in capsys.readouterr().out  # 5 shifts and 3 scales, in 1 and 2 steps


def test_the_state_of_a_trial_is_that_of_its_checkpoint_as_the_log_is_ahead_of_it(tiny, tmp_path):
    plan = Plan(tmp_path, tiny, ("independent", "assignment", "matched:assignment"), (0,))
    run, matched = (RunDir(plan.trial_dir(trial)) for trial in plan.trials[1:])
    run.begin(plan.trial_recipe(plan.trials[1]))
    matched.begin(plan.trial_recipe(plan.trials[2]))  # evaluated along with it
    run.log("train", 6)  # and killed before the first checkpoint
    assert [line.split()[1] for line in trial_lines(plan)] == ["open", "open", "open"]
    Trainer(plan.trial_recipe(plan.trials[1]), run, device="cpu").train(until=3, quiet=True)
    run.log("train", 6)
    assert [line.split()[1] for line in trial_lines(plan)] == ["open", "step=3", "step=3"]


def test_a_dry_run_of_a_comparison_lists_what_is_missing(tmp_path, capsys):
    assert main(["compare", "cifar10-flow", "--device", "cpu", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "missing: " in capsys.readouterr().out


def test_fields_of_the_recipe_are_options_of_compare_too(tmp_path, capsys):
    options = ("--model.width", "16", "--optim.lr", "1e-3", "--data.max_samples", "128")
    assert compare(tmp_path, "--coupling", "knn:k=4", *options, "--trial", "0") == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["recipe"]["model"]["width"] == 16
    assert plan["recipe"]["optim"]["lr"] == 1e-3


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, capsys):
    assert compare(tmp_path, "--coupling", "knn:k=4", "--trial", "0") == 0
    assert compare(tmp_path, "--coupling", "knn:k=4", "--trial", "0", "--batch-size", "8") == 2
    assert "batch_size: 16 -> 8" in capsys.readouterr().err
    assert compare(tmp_path, "--coupling", "knn:k=4", "--gather", "--batch-size", "8") == 2
    assert "batch_size: 16 -> 8" in capsys.readouterr().err


def test_the_report_names_the_machine_that_trained(tmp_path):
    assert compare(tmp_path, "--coupling", "knn:k=4", "--trial", "0") == 0
    [file] = tmp_path.rglob("environment.json")
    [start] = read_record(file)["starts"]
    write_record(file, start | {"hardware": "8 x Elsewhere"})  # as earlier runs kept it, the last one alone
    assert compare(tmp_path, "--coupling", "knn:k=4", "--gather") == 0
    assert results(tmp_path)["hardware"] == "8 x Elsewhere"


def test_a_launcher_of_ranks_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert compare(tmp_path / "out") == 2
    assert "launched as 2 ranks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "orphan.py").write_text(
        "import multiprocessing, time\n"
        "from immiscible_diffusion.experiments.compare.workers import end_with_parent\n\n"
        "def work(ready):\n    end_with_parent()\n    ready.set()\n    time.sleep(600)\n\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    ready = context.Event()\n"
        "    worker = context.Process(target=work, args=(ready,), daemon=True)\n"
        "    worker.start()\n    ready.wait()\n    print(worker.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "orphan.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.subprocess
def test_a_failing_trial_is_reported_and_the_others_finish(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(
        "def broken(data, *, cond=None, mask=None, generator=None):\n"
        "    if len(data) == 16:\n        raise RuntimeError('no noise today')\n"
        "    return data.clone()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "out"
    assert compare(folder, "--coupling", "broken:broken", "--workers", "1") == 2
    assert "no noise today" in capsys.readouterr().err
    assert compare(folder, "--coupling", "broken:broken", "--gather") == 0
    assert sum(trial["finished"] for trial in results(folder)["trials"]) == 2


def test_a_coupling_that_always_fails_is_named_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "always.py").write_text(
        "def always(data, *, cond=None, mask=None, generator=None):\n    return undefined\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert compare(tmp_path / "out", "--coupling", "always:always") == 2
    assert "coupling 'always:always' fails on the data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_plan_refuses_repeats_and_nothing(tmp_path):
    recipe = recipe_from_name("digits-flow")
    with pytest.raises(ValueError, match="named twice"):
        Plan(tmp_path, recipe, ("independent", "independent"), (0,))
    with pytest.raises(ValueError, match="would share a folder"):
        Plan(tmp_path, recipe, ("knn:k=4", "knn-k=4"), (0,))
    with pytest.raises(ValueError, match="at least one seed"):
        Plan(tmp_path, recipe, ("independent",), ())


def test_trials_share_a_seed_s_recipe_and_folders_differ(tmp_path):
    recipe = recipe_from_name("digits-flow")
    plan = Plan(tmp_path, recipe, ("independent", "knn:k=4", "shuffled:knn:k=4"), (0, 1))
    assert len({plan.trial_dir(trial) for trial in plan.trials}) == 6
    assert [trial.seed for trial in plan.trials] == [0, 0, 0, 1, 1, 1]
    assert plan.control_of("shuffled:knn:k=4") == "knn:k=4"
    assert plan.control_of("knn:k=4") is None
    assert slug("my.mod:C(k=3)") != slug("my.mod:C(k=4)")


@pytest.mark.subprocess
def test_demo_is_a_comparison(tmp_path):
    options = ["demo", "--tiny", "--device", "cpu", "--seeds", "0", "--out", str(tmp_path)]
    code = subprocess.run([sys.executable, "-m", "immiscible_diffusion", *options], check=False, capture_output=True)
    assert code.returncode == 0, code.stderr
    assert len(results(tmp_path)["couplings"]) == 1 + len(DEFAULT_COUPLINGS)
    assert "shuffled:calibrated:knn:k=64" in DEFAULT_COUPLINGS  # the control of the likely best
