import multiprocessing as mp
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

pytest.importorskip("gym_pusht")

from immiscible_diffusion.applications.pusht.states import start_states
from immiscible_diffusion.applications.pusht.vector_env import Tables, pictures

INIT_NOISES = start_states(3).numpy()
ACTIONS = np.random.default_rng(0).uniform(50, 450, (3, 6, 2))


@pytest.fixture(scope="module")
def alone():
    with Tables(3) as tables:
        tables.reset(INIT_NOISES)
        return tables.step(ACTIONS)


def children():
    return [process for process in mp.active_children() if process.name.startswith("Spawn")]


def test_workers_do_what_one_process_does_and_end(alone):
    before = children()
    with Tables(3, workers=2) as tables:
        tables.reset(INIT_NOISES)
        found = tables.step(ACTIONS)
        assert len(children()) == len(before) + 2
    np.testing.assert_array_equal(found.state, alone.state)
    np.testing.assert_array_equal(found.coverage, alone.coverage)
    assert children() == before


def test_some_tables_go_on_while_others_rest(alone):
    with Tables(3) as tables:
        tables.reset(INIT_NOISES)
        first = tables.step(ACTIONS[[2, 0], :3], [2, 0])
        rest = tables.step(ACTIONS[[0, 2], 3:], [0, 2])
    np.testing.assert_array_equal(first.state, alone.state[[2, 0], :3])
    np.testing.assert_array_equal(rest.state, alone.state[[0, 2], 3:])


def test_a_fault_in_a_worker_is_told_and_leaves_the_tables_in_use(alone):
    with Tables(3, workers=1) as tables:
        tables.reset(INIT_NOISES)
        with pytest.raises(ValueError, match="actions must be finite places"):
            tables.step(np.full((3, 2, 2), np.nan))
        tables.reset(INIT_NOISES)
        np.testing.assert_array_equal(tables.step(ACTIONS).state, alone.state)


def test_processes_end_with_an_error_in_the_with():
    class Stop(Exception):
        pass

    def fail_within(error):
        with Tables(2, workers=2) as tables:
            tables.reset(INIT_NOISES[:2])
            raise error

    before = children()
    with pytest.raises(Stop):
        fail_within(Stop)
    assert children() == before


def test_a_process_that_died_is_told_and_the_others_end():
    before = children()
    with Tables(2, workers=2) as tables:
        victim = tables._others[0].process
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        with pytest.raises(RuntimeError, match="ended with exit code -9"):
            tables.reset(INIT_NOISES[:2])
    assert children() == before


def test_ctrl_c_ends_everything(tmp_path):
    """To the whole group, as a terminal sends it, while tables are being stepped."""
    script = tmp_path / "use.py"
    script.write_text(
        textwrap.dedent("""
        import signal
        import numpy as np
        from immiscible_diffusion.pusht.task import start_states
        from immiscible_diffusion.pusht.vector import Tables

        if __name__ == "__main__":
            # A job in the background inherits that it is ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with Tables(2, workers=2) as tables:
                tables.reset(start_states(2).numpy())
                pids = [worker.process.pid for worker in tables._others]
                print(*pids, flush=True)
                while True:
                    tables.step(np.full((2, 8, 2), 250.0))
        """)
    )
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2, run.stderr.read()
    time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)
    try:
        _, error = run.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # nothing goes on after a test
        raise
    assert run.returncode != 0
    assert error.count("KeyboardInterrupt") == 1  # of the caller; the workers are silent
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_tables_are_used_inside_their_with():
    tables = Tables(2)
    with pytest.raises(ValueError, match="closed"):
        tables.reset(INIT_NOISES[:2])
    with tables:
        pass
    with pytest.raises(ValueError, match="closed"):
        tables.reset(INIT_NOISES[:2])


def test_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match="count >= 1"):
        Tables(0)
    with Tables(2) as tables, pytest.raises(ValueError, match="a row for each of 2 tables"):
        tables.reset(INIT_NOISES)


def test_pictures_are_of_the_states():
    shots = pictures(INIT_NOISES[[0, 1, 0]], size=32)
    assert shots.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(shots[0], shots[2])
    assert (shots[0] != shots[1]).any()
