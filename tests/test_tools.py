"""Every tool: short, --help before torch is imported, and one paragraph with exit code 2 for what the user can mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.errors import NoSoundCheckpoint, UserError, run_tool

ROOT = Path(__file__).parents[1]
TOOLS = sorted(ROOT.glob("tools/*.py"))
PREPARE = sorted(ROOT.glob("datasets/*/prepare.py"))
HEAVY = ("torch", "deepspeed", "transformers", "decord", "av", "tensorboard", "omegaconf")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120
    )


@pytest.mark.parametrize("path", TOOLS + PREPARE, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_answers_before_anything_heavy_is_imported(path):
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules]))\n"
        f"sys.argv = [{str(path)!r}, '--help']\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')\n"
    )
    answer = run("-c", code)
    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout and "HEAVY []" in answer.stdout


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_tools_are_short_and_say_what_they_do(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 and lines[0].startswith('"""')


MISTAKES = [
    (["tools/sample_video.py", "runs/absent", "--prompt", "x", "--out", "{out}"], "runs/absent"),
    (["tools/sample_video.py", "runs/absent", "--out", "{out}"], "--prompt"),
    (["tools/sample_video.py", "runs/absent", "--prompts", "absent.txt", "--out", "{out}"], "absent.txt"),
    (["tools/sample_video.py", "runs/absent", "--prompt", "x", "--device", "cuda:77", "--out", "{out}"], "cuda:77"),
    (["tools/report.py", "runs/absent"], "runs/absent"),
    (["tools/inspect_data.py", "data/absent"], "data/absent"),
    (["tools/train.py", "configs/absent.yaml"], "configs/absent.yaml"),
    (["tools/train.py", "configs/sounding_objects/smoke.yaml", "system.dorp=0.2"], "dorp"),
    (["tools/train.py", "configs/sounding_objects/smoke.yaml", "--skip-steps", '3"4'], "health.skip"),
]


@pytest.mark.parametrize("command, named", MISTAKES, ids=[f"{m[0][0][6:-3]}-{m[1]}" for m in MISTAKES])
def test_a_mistake_is_one_paragraph_that_names_it(command, named, tmp_path):
    answer = run(*[part.format(out=tmp_path) for part in command])
    assert answer.returncode == 2 and named in answer.stderr
    assert "Traceback" not in answer.stderr and len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "error, code", [(UserError("x"), 2), (NoSoundCheckpoint("x"), 3), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_exit_codes(error, code):
    def main(argv):
        if error:
            raise error

    assert run_tool(main, []) == code
