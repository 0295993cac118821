"""When a run is started again and when not: on a fake command that does what a list says, and on one real kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fakes
import pytest

from mmdiff.train.settings import Every
from mmdiff.train.supervise import newest, supervise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import launch

FAKE = """
import json, os, sys
from pathlib import Path
run = Path(sys.argv[1])
plan = json.loads((run / "plan.json").read_text())
step, code = plan.pop(0)
(run / "plan.json").write_text(json.dumps(plan))
(run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
(run / "checkpoints" / "step-00009999.tmp-ab").mkdir(exist_ok=True)
if code == "done":
    (run / "DONE").touch()
os._exit(0) if code in ("done", 0) else os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
"""


def starts(run: Path, *plan: tuple[int, object], restarts: int = 5) -> tuple[int, int]:
    """Supervise a command whose starts reach these steps and end so -> (exit code, how often it was started)."""
    (run / "plan.json").write_text(json.dumps(plan))
    code = supervise([sys.executable, "-c", FAKE, str(run)], run, restarts=restarts)
    return code, len(plan) - len(json.loads((run / "plan.json").read_text()))


@pytest.mark.parametrize(
    "plan, restarts, code, started",
    [
        ([(10, "done")], 5, 0, 1),
        ([(10, 1), (20, -9), (30, "done")], 5, 0, 3),
        ([(10, 2), (10, "done")], 5, 2, 1),  # a person must mend it
        ([(10, 3), (10, "done")], 5, 3, 1),
        ([(10, 75), (10, "done")], 5, 75, 1),  # the scheduler starts it again
        ([(0, 1), (0, 1), (0, "done")], 5, 1, 2),  # no progress
        ([(10, 1), (20, 1), (20, 7), (30, "done")], 5, 7, 3),
        ([(10, 1), (20, 1), (30, 1), (40, "done")], 2, 1, 3),  # no restarts left
        ([(10, 0), (20, "done")], 5, 0, 2),  # only DONE is success
        ([(10, 0), (20, 0)], 1, 1, 2),
        ([(10, -9)], 0, 137, 1),
    ],
)
def test_it_starts_again_what_may_get_further_and_passes_on_the_rest(tmp_path, plan, restarts, code, started):
    assert starts(tmp_path, *plan, restarts=restarts) == (code, started)


def test_only_committed_checkpoints_count_as_progress(tmp_path):
    for name in ("step-00000010", "step-00000030.corrupt", "step-00000040.tmp-12", "step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest(tmp_path) == 20 and newest(tmp_path / "nothing") == 0


def test_a_command_that_does_not_exist_and_a_signal(tmp_path):
    tool = [sys.executable, "tools/supervise.py", "--run", str(tmp_path), "--"]
    done = subprocess.run([*tool, "no-such-command"], cwd=launch.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be started" in done.stderr
    process = subprocess.Popen([*tool, "sh", "-c", f"touch {tmp_path}/up; exec sleep 60"], cwd=launch.ROOT)
    end = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 75  # whatever the command made of it, it was stopped and not started again


class Killed(fakes.System):
    """Dies without a word in the seventh step, the first time that it comes there."""

    def loss(self, batch, *, seed, step, player):
        if step == 7 and not Path(os.environ["MARK"]).exists():
            Path(os.environ["MARK"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch, seed=seed, step=step, player=player)


def test_a_killed_run_is_started_again_and_ends_with_the_same_bits(tmp_path, monkeypatch):
    run = fakes.Run(str(tmp_path / "killed"), every=Every(log=1, save=2))
    fakes.train(replace(run, run=str(tmp_path / "whole")))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    here = [str(Path(__file__).parent), str(launch.ROOT)]
    lines = (
        f"import sys; sys.path[:0] = {here}; import fakes, test_supervise as t",
        f"run = fakes.Run({run.run!r}, every=t.Every(log=1, save=2))",
        "sys.exit(fakes.train(run, system=t.Killed()))",
    )
    assert supervise([sys.executable, "-c", "; ".join(lines)], tmp_path / "killed", restarts=1) == 0
    assert (tmp_path / "mark").exists()
    end = "checkpoints/step-00000008"
    assert fakes.hashes(tmp_path / "killed" / end) == fakes.hashes(tmp_path / "whole" / end)
    shutil.rmtree(tmp_path / "killed")
