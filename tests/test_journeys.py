"""A user's journeys by the real commands: train, continue, be interrupted, go wrong, and sample a clip with sound."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import launch

SMOKE = "configs/sounding_objects/smoke.yaml"
SHORT = ("steps=4", "engine.precision=fp32", "every.log=1", "every.save=2", "every.sample=0", "every.evaluate=0")
LAST = "checkpoints/step-00000004"


def python(*arguments: str, seconds: float = 200) -> tuple[int, str]:
    """A tool by plain python -> (exit code, output)."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=launch.ROOT, env=launch.environment(), capture_output=True, text=True, timeout=seconds
    )
    return done.returncode, done.stdout + done.stderr


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def files(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "manifest.json").read_text())["files"]


def options(folder: Path, name: str) -> list[str]:
    return [SMOKE, f"run={folder / name}", f"data.path={folder / 'data'}", *SHORT]


def zero(stage: int) -> str:
    return f"engine.config=configs/deepspeed/zero{stage}.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where one plain run has made its data and trained."""
    folder = tmp_path_factory.mktemp("journeys")
    code, output = python("tools/train.py", *options(folder, "plain"), "every.sample=4", "every.evaluate=4")
    assert code == 0, output[-3000:]
    return folder


def test_a_run_leaves_what_the_tools_read(folder):
    run = folder / "plain"
    assert (run / "DONE").read_text() == "4\n"
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]
    assert {"loss/video", "loss/audio", "held_out", "lr", "grad_norm", "samples_s"} <= lines(run)[-1].keys()
    assert (run / "environment.json").is_file() and (run / "config.yaml").is_file()
    assert list((run / "samples" / "step-00000004").glob("*.mp4"))


def test_the_run_samples_a_clip_that_can_be_seen_and_heard(folder):
    out = folder / "out"
    prompt = "a red ball falls and bounces twice with a bell sound"
    code, output = python("tools/sample_video.py", str(folder / "plain"), "--prompt", prompt, "--out", str(out))
    assert code == 0, output[-3000:]
    import av

    (clip,) = out.glob("*.mp4")
    with av.open(str(clip)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 8
    with av.open(str(clip)) as file:
        assert sum(frame.samples for frame in file.decode(audio=0)) >= 7000
    assert json.loads(clip.with_suffix(".json").read_text())["prompt"] == prompt


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_under_zero_learn_what_one_process_learns(folder, stage):
    code, output = launch.finish(launch.deepspeed("tools/train.py", *options(folder, f"zero{stage}"), zero(stage)))
    assert code == 0, output[-3000:]
    assert (folder / f"zero{stage}" / "DONE").is_file()
    for ours, theirs in zip(lines(folder / f"zero{stage}"), lines(folder / "plain"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_the_same_command_continues_to_the_same_bits(folder):
    whole = folder / "zero2"
    if not (whole / "DONE").is_file():
        pytest.skip("needs the run of the test above")
    cut = Path(shutil.copytree(whole, folder / "cut"))
    shutil.rmtree(cut / LAST)
    (cut / "DONE").unlink()
    code, output = launch.finish(launch.deepspeed("tools/train.py", *options(folder, "cut"), zero(2)))
    assert code == 0, output[-3000:]
    assert [line["loss_hex"] for line in lines(cut)] == [line["loss_hex"] for line in lines(whole)]
    tensors = [name for name in files(whole / LAST) if name.endswith(".safetensors")]
    assert tensors and all(files(cut / LAST)[name] == files(whole / LAST)[name] for name in tensors)


@pytest.mark.parametrize("who", ["rank", "parent", "parent at once"])
def test_an_interrupted_run_saves_and_leaves_nobody_behind(folder, who):
    run = folder / f"stopped {who}"  # a space in a path is no obstacle
    process = launch.deepspeed(
        "tools/train.py", *options(folder, run.name), zero(1), "steps=100000", "every.save=50000"
    )
    try:
        found = wait_for(lambda: trained(run) and processes(str(run), "--local_rank"), 120)
        if who == "rank":
            rank = next(pid for pid in found if parent(pid) not in found)  # not a decoder, which has its command line
            os.kill(rank, signal.SIGTERM)
        else:
            process.send_signal(signal.SIGKILL if "once" in who else signal.SIGTERM)
        code, output = launch.finish(process, 60)
        assert who != "rank" or code == 75, output[-3000:]
        wait_for(lambda: not processes(str(run), "--local_rank"), 35)
        (saved,) = (run / "checkpoints").glob("step-*")
        assert int(saved.name[5:]) == lines(run)[-1]["step"]
        assert not (run / "DONE").exists()
    finally:
        for pid in processes(str(run), "--local_rank"):
            os.kill(pid, signal.SIGKILL)


def trained(run: Path) -> bool:
    """Whether two steps are logged."""
    log = run / "log.jsonl"
    return log.is_file() and len(log.read_text().splitlines()) >= 2


def processes(*words: str) -> list[int]:
    """The live processes whose command line holds all the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and "launcher" not in line:
            found.append(int(path.parent.name))
    return found


def parent(pid: int) -> int:
    """Who started a process; numbers of processes begin anew after the greatest, so the least one may be a child."""
    return int(re.search(r"^PPid:\s*(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.M)[1])


def wait_for(condition, seconds: float):
    """The condition's value as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def test_what_goes_wrong_is_one_paragraph_and_an_exit_code(folder):
    wrong = {
        ("optimizer.lrr=1",): "lrr",
        (zero(1),): "deepspeed tools/train.py",
        ("optimizer.lr=0.5",): "optimizer.lr",
    }
    for changes, word in wrong.items():
        code, output = python("tools/train.py", *options(folder, "plain"), *changes)
        assert code == 2 and word in output and "Traceback" not in output, output[-2000:]


def test_checkpoints_of_which_none_is_sound_are_an_exit_code_of_their_own(folder):
    run = Path(shutil.copytree(folder / "plain", folder / "damaged"))
    for path in run.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    code, output = python("tools/train.py", *options(folder, "damaged"))
    assert code == 3 and "none is sound" in output and "Traceback" not in output


def test_help_answers_without_torch():
    code, output = python("-X", "importtime", "tools/train.py", "--help")
    assert code == 0 and "key=value" in output and "| torch" not in output
