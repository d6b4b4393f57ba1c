"""300 changes to files that commands read again: an error of one line, or the same result. Never a traceback."""

import os
import random
import shutil
import traceback
from pathlib import Path

import pytest

from fixtures.mutations import mutate
from fuzz.conftest import CASES, Case, call

pytestmark = pytest.mark.nightly
SEED, CHANGES = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_CHANGES", "60"))  # of every kind
NOT_READ = ("model.json", "evaluation.json", "*.html", "pilot.json", "*.csv", "*.npy")


def files_of(folder: Path, case: Case) -> list[Path]:
    pattern = case.files if "/" in case.files or "." in case.files else f"**/{case.files}"
    found = [file for file in sorted(folder.glob(pattern)) if file.is_file() and file.stat().st_size]
    return [file for file in found if not any(file.match(name) for name in NOT_READ) and file.name != ".lock"]


def test_changed_files(source, tmp_path):
    kind, folder = source
    rng = random.Random(f"{kind} {SEED}")
    copy, expected, bad = tmp_path / "copy", {}, []
    counts = {"error": 0, "same": 0, "edited": 0}
    for number in range(CHANGES):
        case = rng.choice(CASES[kind])
        if id(case) not in expected:
            shutil.copytree(folder, copy)
            code, out, err = call(case.argv(copy))
            assert code == 0, err
            expected[id(case)] = case.result(copy, out)
            shutil.rmtree(copy)
        shutil.copytree(folder, copy)
        files = files_of(copy, case)
        suffix = rng.choice(sorted({file.suffix for file in files}))  # of most kinds there are few
        file = rng.choice([file for file in files if file.suffix == suffix])
        done = mutate(file, rng)
        what = f"{number}: {file.relative_to(copy)} {done}: {case.argv(copy)[0]}"
        try:
            code, out, err = call(case.argv(copy))
        except Exception:  # noqa: BLE001 - that is what is looked for
            bad.append(f"TRACEBACK {what}\n{traceback.format_exc(limit=-3)}")
        else:
            if code == 2:
                counts["error"] += 1
                if "Traceback" in err or "immiscible: error" not in err.splitlines()[-1]:
                    bad.append(f"NOT ONE LINE {what}\n{err}")
            elif code != 0:
                bad.append(f"EXIT {code} {what}\n{err}")
            elif done.startswith("edited"):  # which may mean another experiment
                counts["edited"] += 1
            elif case.result(copy, out) != expected[id(case)]:
                bad.append(f"DIFFERENT {what}")
            else:
                counts["same"] += 1
        shutil.rmtree(copy)
    print(f"{kind}: {counts}, bad {len(bad)}")  # noqa: T201
    assert not bad, "\n".join(bad)
