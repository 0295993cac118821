"""The runner: side by side, through launchers, past failures; and once for real, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmdiff.ablate import question as questions
from mmdiff.ablate.question import Cell
from mmdiff.ablate.runner import Runner, claimed, launched
from mmdiff.errors import UserError

ROOT = Path(__file__).parents[2]
SMOKE = questions.read(ROOT / "configs" / "ablations" / "smoke.yaml")


class Scripted(Runner):
    """A runner whose cells are scripts in the place of trainings; there is nothing to judge."""

    script = ""

    def training(self, cell: Cell) -> list[str]:
        return [sys.executable, "-c", self.script, str(self.folder(cell)), cell.name]

    def trained(self, cell: Cell) -> bool:
        return (self.folder(cell) / "DONE").is_file()

    def judged(self, cell: Cell) -> bool:
        return True


def scripted(out: Path, script: str, **options: object) -> Scripted:
    runner = Scripted(SMOKE, {arm.name: 12 for arm in SMOKE.arms}, out, **options)  # type: ignore[arg-type]
    runner.script = "import os, sys, time, pathlib\nfolder = pathlib.Path(sys.argv[1])\nfolder.mkdir()\n" + script
    return runner


def test_a_cell_that_fails_says_why_and_the_others_stand(tmp_path: Path) -> None:
    script = "if sys.argv[2] == 'nothing-s0': sys.exit('error: out of luck')\n(folder / 'DONE').touch()"
    runner = scripted(tmp_path, script)
    found = runner.run(progress=False)
    assert found.pop("nothing-s0") == "out of luck (exit code 1)" and set(found.values()) == {None}
    again = scripted(tmp_path, "").run(progress=False)  # its folder is there, so that mkdir fails where it is run
    assert "File exists" in str(again["nothing-s0"]) and again["everything-s1"] is None


def test_jobs_and_gpus_are_slots(tmp_path: Path) -> None:
    """Two cells at once and never three; each GPU serves one cell at a time."""
    script = (
        "gpu = folder.parent / ('on-' + os.environ.get('CUDA_VISIBLE_DEVICES', ''))\n"
        "gpu.mkdir()\ntime.sleep(0.3)\n(folder / 'DONE').write_text(gpu.name)\ngpu.rmdir()"
    )
    runner = scripted(tmp_path, script, gpus=["0", "3"])
    assert set(runner.run(progress=False).values()) == {None}
    assert {path.read_text() for path in tmp_path.glob("cells/*/DONE")} == {"on-0", "on-3"}


def test_a_launcher_wraps_the_command(tmp_path: Path) -> None:
    assert launched("srun -J {name} {command}", ["a", "b c"], name="x") == ["srun", "-J", "x", "a", "b c"]
    assert launched("ssh host 'cd /x && {command}'", ["a", "b c"], name="x") == ["ssh", "host", "cd /x && a 'b c'"]
    with pytest.raises(UserError, match="{command}"):
        Runner(SMOKE, {}, tmp_path, launcher="srun")
    runner = scripted(tmp_path, "(folder / 'DONE').write_text(os.environ['BY'])", launcher="env BY={name} {command}")
    assert set(runner.run(progress=False).values()) == {None}
    assert (tmp_path / "cells" / "nothing-s1" / "DONE").read_text() == "nothing-s1"


def test_a_cell_is_locked_for_as_long_as_its_command_lives(tmp_path: Path) -> None:
    """Also after the runner that started it is gone: the lock belongs to the log, which the command holds open."""
    path = tmp_path / "cell.log"
    with open(path, "ab") as log:
        assert claimed(log)
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=log)
    with open(path, "ab") as again:
        assert not claimed(again)
        orphan.kill()
        orphan.wait()
        assert claimed(again)


# ---- for real ------------------------------------------------------------------------------------------------------

QUESTION = """base: {base}
steps: 4
batch: 4
every: {{log: 1, save: 2, sample: 0, evaluate: 2}}
sample: {{steps: 2}}
data: {{path: {data}}}
prepare: {{clips: 96}}
vary: {{share: {{both: {{}}, time: {{system.denoiser.net.share: [time]}}}}}}
seeds: [0]
judge: {{n: 4, clips: 1}}
"""


def command(path: Path, out: Path) -> list[str]:
    return [sys.executable, "tools/ablate.py", str(path), "--out", str(out), "--gpus", ""]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate")
    base = ROOT / "configs" / "sounding_objects" / "smoke.yaml"
    (folder / "q.yaml").write_text(QUESTION.format(base=base, data=folder / "data"))
    return folder


def test_a_killed_runner_goes_on_and_a_cell_by_hand_is_the_same(asked: Path) -> None:
    """SIGKILL in the middle of the first training; the same command then answers, and its cells can be made by hand."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    out = asked / "out"
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command(asked / "q.yaml", out), **options)  # type: ignore[call-overload]
    while first.poll() is None and not list(out.glob("cells/*/log.jsonl")):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()

    second = subprocess.run(command(asked / "q.yaml", out), **options)  # type: ignore[call-overload]
    assert second.returncode == 0, second.stderr
    result = json.loads((out / "result.json").read_text())
    assert set(result["cells"]) == {"both-s0", "time-s0"} and not any("error" in c for c in result["cells"].values())
    assert {"facts", "sync_f1", "held_out_video", "held_out_audio"} <= set(result["metrics"])
    assert str(asked) not in json.dumps(result["cells"]), "a result is the same in any folder"
    page = (out / "report.html").read_text()
    assert page.count("data:video/mp4") == 2 and "system.denoiser.net.share" in page

    question = questions.read(asked / "q.yaml")
    cell = question.cells()[1]
    by_hand = cell.command(question.base, asked / "hand", steps=4)
    subprocess.run(by_hand, check=True, **options)  # type: ignore[call-overload]
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (
            run / "checkpoints" / "step-00000004" / name for run in (asked / "hand", out / "cells" / cell.name)
        )
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_finished_question_trains_nothing_again(asked: Path) -> None:
    question = questions.read(asked / "q.yaml")
    runner = Runner(question, {"both": 4, "time": 4}, asked / "out")
    assert all(runner.trained(cell) and runner.judged(cell) for cell in question.cells())
    longer = Runner(question, {"both": 6, "time": 4}, asked / "out")
    assert [longer.trained(cell) for cell in question.cells()] == [False, True]
    other = Runner(replace(question, judge=replace(question.judge, n=5)), {"both": 4, "time": 4}, asked / "out")
    assert not any(other.judged(cell) for cell in question.cells())
