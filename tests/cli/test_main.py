import importlib.util
import json
import re
import warnings

import pytest

from immiscible_diffusion.cli import renamed
from immiscible_diffusion.cli.main import COMMANDS, main

FIND_SPEC = importlib.util.find_spec


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    # tyro breaks its lines and draws a box around them.
    return code, captured.out, " ".join(re.sub("[╭╮╰╯│─]+", " ", captured.err).split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "which recipe?"),
        (["train", "digit-flow"], "did you mean 'digits-flow'"),
        (["train", "digits-flow", "--tiny", "--color", "red"], "Unrecognized options: --color"),
        (["train", "digits-flow", "--tiny", "--steps", "many"], "--steps"),
        (["train", "digits-flow", "--tiny", "--path.shift", "-1"], "shift must be > 0"),
        (["train", "digits-flow", "--tiny", "--coupling", "knm"], "unknown coupling 'knm'"),
        (["train", "digits-flow", "--tiny", "--coupling", "knn:k=0"], "k must be a whole number"),
        (["train", "digits-flow", "--tiny", "--coupling", "knn:j=4"], "options: k, center"),
        (["train", "digits-flow", "--tiny", "--data.name", "nothing"], "nothing"),
        (["train", "digits-flow", "--tiny", "--out", f"{__file__}/run"], "cannot make the folder"),
        (["analyze", "--data", __file__], "no folder, nor a file .npy"),
        (["train", "digits-flow", "--tiny", "--trackers", "wandb"], "wandb"),
        (["compare", "digits-flow", "--tiny", "--coupling", "knm"], "unknown coupling 'knm'"),
        (["compare", "digits-flow", "--tiny", "--coupling", "no.module:C(k=1)"], "no.module"),
        (["compare", "digits-flow", "--tiny", "--trial", "99"], "trial must be 0 to 17"),
        (["compare", "digits-flow", "--tiny", "--workers", "0"], "workers must be >= 1"),
        (["compare", "digits-flow", "--tiny", "--seed", "0"], "--seeds 0 1 2; got --seed"),
        (["compare", "digits-flow", "--tiny", "--coupling"], "one name at least"),
        (["encode", "no-vae", "--data", "nodata", "--out", "z"], "unknown data set 'nodata'"),
        (["compare", "digits-flow", "--tiny", "--gather"], "run some trials first"),
        (["compare", "digits-flow", "--eval.samples", "40"], "too few"),
        (["sample", "nowhere"], "nowhere is not a run folder"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
    ],
)
def test_bad_input_is_code_2_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", _without_wandb)
    code, _, said = outcome(capsys, *arguments)
    assert code == 2
    assert expected in said
    assert not list(tmp_path.iterdir())


def _without_wandb(name):
    return None if name == "wandb" else FIND_SPEC(name)


def test_help_lists_the_commands_and_recipes(capsys):
    code, text, _ = outcome(capsys, "--help")
    assert code == 0
    assert all(command in text for command in COMMANDS)
    code, text, _ = outcome(capsys, "recipes")
    assert "digits-flow" in text
    assert "``" not in text
    code, text, _ = outcome(capsys, "recipes", "cifar10-flow")
    assert json.loads(text)["name"] == "cifar10-flow"
    for command in COMMANDS.keys() - {"recipes"}:
        assert main([command, "--help"]) == 0
    code, text, _ = outcome(capsys, "compare", "digits-flow", "--help")
    assert code == 0
    assert "--seeds" in text
    assert outcome(capsys)[0] == 2


def test_old_names_give_one_line_with_the_new_one(capsys):
    for command in renamed.COMMANDS.keys() - COMMANDS.keys():
        new = renamed.COMMANDS[command]
        assert main([command]) == 2
        assert capsys.readouterr().err == f"immiscible: error: immiscible {command} is now {new}\n"
    for option, new in renamed.OPTIONS.items():
        word = f"--{option}".replace("_", "-")
        with pytest.raises(ValueError, match=re.escape(f"{word} is now --{new}") + "$"):
            renamed.check_options(["5", f"{word}=3"], "sample")
    with pytest.raises(ValueError, match=r"--optimiser\.lr is now --optim\.lr"):
        renamed.check_options(["--optimiser.lr", "1"], "train")
    with pytest.raises(ValueError, match=r"--no-optimiser\.eight-bit is now --no-optim\.use_8bit"):
        renamed.check_options(["--no-optimiser.eight-bit"], "train")
    renamed.check_options(["--optim.lr", "--color", "precision", "start"], "train")


def test_new_names_are_options(capsys):
    recipes = ("digits-flow", "pusht-policy", "digits-consistency", "coco-sd", "sd-inpaint")
    for words in [["sample"], ["evaluate"], ["analyze"], ["pilot"], ["encode"], ["compare", "digits-flow"]]:
        main([*words, "--help"])
    for recipe in recipes:
        main(["train", recipe, "--help"])
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    for old, new in renamed.OPTIONS.items():
        words = {f"--{name.split()[0].rstrip(',').replace('_', '-')}" for name in (old, new)}
        assert words & known, f"{old} is said to be {new}"


def test_an_old_option_of_a_command(capsys):
    assert main(["train", "digits-flow", "--accumulation", "4"]) == 2
    line = "immiscible: error: --accumulation is now --gradient_accumulation_steps\n"
    assert capsys.readouterr().err == line
    assert main(["compare", "digits-flow", "--label-dropout", "0.1"]) == 2
    assert "--label-dropout is now --cond_drop_prob" in capsys.readouterr().err
    for command in ("sample", "evaluate"):  # where steps are not those of training
        assert main([command, "run", "--steps", "4"]) == 2
        assert "--steps is now --sampling-steps" in capsys.readouterr().err
    for command in ("describe", "analyze", "report"):  # which sample nothing
        code, _, said = outcome(capsys, command, "knn:k=4", "--steps", "4")
        assert code == 2
        assert "is now" not in said


def test_train_sample_evaluate(capsys, tmp_path):
    run = str(tmp_path / "run")
    assert outcome(capsys, "train", "digits-flow", "--tiny", "--device", "cpu", "--out", run)[0] == 0
    code, _, said = outcome(capsys, "sample", run, "--count", "5", "--device", "cpu")
    assert code == 0, said
    folder = tmp_path / "run" / "images" / "step8-euler2-seed0"
    assert sorted(path.name for path in folder.iterdir()) == [f"00000{i}.png" for i in range(5)]
    assert folder.with_name("step8-euler2-seed0-grid.png").exists()
    assert outcome(capsys, "sample", run, "--sampling-steps", "0")[0] == 2
    assert f"{run} is one" in outcome(capsys, "sample", str(tmp_path))[2]  # the folder of a comparison, say
    assert outcome(capsys, "sample", run, "--count", "3", "--device", "cpu")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"00000{i}.png" for i in range(3)]
    code, text, said = outcome(capsys, "evaluate", run, "--method", "dopri5", "--samples", "100")
    assert code == 0, said
    assert "frechet" in text
    assert "of the data's own" in text
    [result] = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["samples"] == 100
    assert result["sampler"] == "dopri5 0.01"


def test_evaluate_a_folder_of_images(capsys, tmp_path):
    run = str(tmp_path / "run")
    outcome(capsys, "train", "digits-flow", "--tiny", "--device", "cpu", "--out", run)
    outcome(capsys, "sample", run, "--count", "80", "--device", "cpu")
    folder = str(tmp_path / "run" / "images" / "step8-euler2-seed0")
    code, text, said = outcome(capsys, "evaluate", run, "--folder", folder)
    assert code == 0, said
    assert "80" in text


def test_dry_run_writes_nothing_and_says_what_a_run_takes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = outcome(capsys, "train", "digits-flow", "--tiny", "--dry-run", "--device", "cpu")
    assert code == 0
    assert all(word in text for word in ("parameters:", "missing: nothing", "time:", "disk:"))
    assert not list(tmp_path.iterdir())


def test_dry_run_says_what_is_missing(capsys):
    code, text, _ = outcome(capsys, "train", "cifar10-flow", "--dry-run", "--device", "cpu")
    assert code == 2
    assert "missing:" in text
    assert "nothing" not in text.partition("missing:")[2]


def test_warnings_of_the_package_are_a_line_each(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", None)  # restored afterwards
    main(["recipes"])
    own = warnings.formatwarning("skipped\na shard", UserWarning, main.__code__.co_filename, 1)
    assert own == "immiscible: warning: skipped a shard\n"
    assert f"{json.__file__}:1: UserWarning" in warnings.formatwarning("old", UserWarning, json.__file__, 1)


@pytest.mark.parametrize("world", ["", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_process_where_several_were_asked_for_is_warned_of(recwarn, monkeypatch, world):
    """In the environment that ``accelerate launch --cpu --num_processes 2`` makes; torchrun and MPI set a size."""
    for name in ("ACCELERATE_USE_CPU", "MASTER_PORT", *[world] * bool(world)):
        monkeypatch.setenv(name, "2")
    assert main(["recipes"]) == 0
    assert any("started one" in str(warning.message) for warning in recwarn) == (not world)
