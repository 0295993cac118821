"""The batch script, with stand-ins for SLURM's commands: what each task is told, and what happens when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.train import stop

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >> $SEEN/queue; fi',
    "srun": """echo start >> $SEEN/starts
while [ "${1#--}" != "$1" ]; do shift; done
code=0
for i in 0 1 2 3; do SLURM_PROCID=$i SLURM_LOCALID=$((i % 2)) "$@" || code=$?; done
exit $code""",
    "python": f"""if [ "$1" = tools/supervise.py ]; then exec {sys.executable} "$@"; fi
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_SIZE $MASTER_ADDR $MASTER_PORT" "$@" >> $SEEN/tasks
if [ "$CODE" = 0 ]; then mkdir -p "$RUN"; touch "$RUN/DONE"; fi
exit $CODE""",
}


def submit(folder: Path, code: int) -> tuple[int, dict[str, list[str]]]:
    """The script of a job of two nodes with two tasks each, whose tasks end so -> (its code, what was called)."""
    for name, text in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node[7-8]", "JOB_ID": "41234", "NTASKS": "4", "NTASKS_PER_NODE": "2"}
    told = {
        "SEEN": str(folder),
        "RUN": str(folder / "a run"),
        "CODE": str(code),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    environment = os.environ | told | {f"SLURM_{name}": value for name, value in slurm.items()}
    command = ["bash", "tools/slurm/train.sbatch", str(folder / "a run"), "c.yaml", "engine.config=z 2.json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    files = [path for path in folder.iterdir() if path.name in ("tasks", "starts", "queue")]
    return done.returncode, {path.name: path.read_text().splitlines() for path in files}


def test_every_task_learns_who_it_is_and_where_the_first_one_waits(tmp_path):
    code, seen = submit(tmp_path, 0)
    rest = f"4 2 node7 21234 tools/train.py c.yaml engine.config=z 2.json run={tmp_path}/a run"
    assert code == 0 and seen["tasks"] == [f"{rank} {rank % 2} {rest}" for rank in range(4)]
    assert "queue" not in seen and len(seen["starts"]) == 1


@pytest.mark.parametrize("code, starts, requeued", [(75, 1, ["requeue 41234"]), (2, 1, None), (1, 2, None)])
def test_a_stopped_job_queues_again_a_failed_one_starts_again_and_a_wrong_one_ends(tmp_path, code, starts, requeued):
    ended, seen = submit(tmp_path, code)
    assert (ended, len(seen["starts"]), seen.get("queue")) == (code, starts, requeued)


def test_tasks_of_slurm_are_told_from_ranks_that_a_launcher_started_within_a_job(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert not stop.tasks_of_slurm()
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}.items():
        monkeypatch.setenv(name, value)
    assert stop.tasks_of_slurm()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not stop.tasks_of_slurm()
