"""The runs that the soak does harm to: two ranks of the real command, on the smallest joint system of the house."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import launch

CONFIG = "configs/sounding_objects/smoke.yaml"
QUIET = ("engine.precision=fp32", "every.log=1", "every.sample=0", "every.evaluate=0")
LONGEST = 900.0  # s that one launch may take


def start(run: Path, *changes: str, data: Path, stage: int = 2, fault: str = "none") -> subprocess.Popen[str]:
    """Begin or continue a run under ZeRO, with a fault of faults.py in it."""
    fixed = (CONFIG, f"run={run}", f"data.path={data}", f"engine.config=configs/deepspeed/zero{stage}.json", *QUIET)
    return launch.deepspeed("tests/faults.py", fault, "tools/train.py", *fixed, *changes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, output); nothing of the launch is left."""
    try:
        return launch.finish(process, LONGEST)
    finally:
        launch.end(process)


def whole(run: Path, *changes: str, data: Path, stage: int = 2) -> None:
    """A run that nobody disturbs."""
    code, output = finish(start(run, *changes, data=data, stage=stage))
    assert code == 0, output[-3000:]


def lines(run: Path) -> list[dict]:
    """The complete lines of a run's log so far."""
    log = run / "log.jsonl"
    text = log.read_text() if log.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def steps(run: Path) -> int:
    """The last step in the log, 0 before the first."""
    return max([line["step"] for line in lines(run)], default=0)


def saved(run: Path) -> list[Path]:
    """The committed checkpoints, oldest first."""
    return sorted(path for path in run.glob("checkpoints/step-*") if path.name[5:].isdigit())


def tensors(run: Path) -> dict[str, str]:
    """The hashes of the newest checkpoint's tensors."""
    files = json.loads((saved(run)[-1] / "manifest.json").read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items() if name.endswith(".safetensors")}


def assert_same(run: Path, other: Path) -> None:
    """Two runs that ended with the same bits and logged the same losses, each step once."""
    ours, theirs = ([(line["step"], line["loss_hex"]) for line in lines(r) if "loss_hex" in line] for r in (run, other))
    assert ours == theirs, f"the logs differ: {len(ours)} and {len(theirs)} lines"
    assert tensors(run) == tensors(other), "the weights differ"
