"""Runs on a tiny system: resuming, accumulation, skipped steps, signals, and what the folder says afterwards."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace

import fakes
import pytest
import torch

from mmdiff.errors import UserError
from mmdiff.train.checkpoint import load_weights
from mmdiff.train.settings import Engine, Every, Optimizer
from mmdiff.train.stop import Stop


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder) -> list[str]:
    return [line["loss_hex"] for line in lines(folder)]


class Interrupted(fakes.System):
    """Sends its own process a signal while it computes one step."""

    at, number = 3, signal.SIGTERM

    def loss(self, batch, *, seed, step, player):
        if step == self.at:
            os.kill(os.getpid(), self.number)
            os.kill(os.getpid(), self.number)  # impatience changes nothing
        return super().loss(batch, seed=seed, step=step, player=player)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, kind, precision):
    run = fakes.Run(
        str(tmp_path / "whole"), optimizer=Optimizer(kind=kind, warmup=2), engine=Engine(precision=precision)
    )
    assert fakes.train(run) == 0
    cut = replace(run, run=str(tmp_path / "cut"))
    assert fakes.train(cut, system=Interrupted()) == 75
    assert not (tmp_path / "cut" / "DONE").exists()
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000003"]
    assert fakes.train(cut) == 0
    whole, resumed = tmp_path / "whole", tmp_path / "cut"
    assert losses(whole) == losses(resumed)
    last = "checkpoints/step-00000008"
    assert fakes.hashes(whole / last) == fakes.hashes(resumed / last)
    assert (resumed / "DONE").read_text() == "8\n"


def test_sigint_too_is_a_checkpoint_of_that_step(tmp_path):
    system = Interrupted()
    system.number = signal.SIGINT
    assert fakes.train(fakes.Run(str(tmp_path)), system=system) == 75
    assert load_weights(tmp_path)[1] == 3


def test_a_finished_run_has_nothing_left_to_do_and_more_steps_continue_it(tmp_path):
    run = fakes.Run(str(tmp_path), steps=4)
    assert fakes.train(run) == 0 and fakes.train(run) == 0
    assert len(lines(tmp_path)) == 4
    assert fakes.train(replace(run, steps=6)) == 0
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    for parts in (1, 2, 4):
        fakes.train(fakes.Run(str(tmp_path / str(parts)), accumulate=parts))
    one, two, four = (load_weights(tmp_path / str(parts))[0] for parts in (1, 2, 4))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(four[name], one[name], atol=1e-5, rtol=1e-4)


def test_the_loss_falls(tmp_path):
    fakes.train(fakes.Run(str(tmp_path), steps=60))
    values = [line["loss"] for line in lines(tmp_path)]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])


def test_a_step_that_is_not_finite_is_skipped_and_names_its_clips(tmp_path):
    assert fakes.train(fakes.Run(str(tmp_path), steps=4), system=fakes.System({2: "all"})) == 0
    skipped = [line for line in lines(tmp_path) if line["skipped"]]
    assert [line["step"] for line in skipped] == [2] and len(skipped[0]["ids"]) == 8
    manifest = json.loads((tmp_path / "checkpoints/step-00000004/manifest.json").read_text())
    assert manifest["updates"] == {"learner": 3}
    assert all(tensor.isfinite().all() for tensor in load_weights(tmp_path)[0].values())


def test_a_skip_is_logged_even_between_logged_steps(tmp_path):
    run = fakes.Run(str(tmp_path), steps=4, every=Every(log=4, save=4))
    fakes.train(run, system=fakes.System({2: "all"}))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


def test_three_skips_in_a_row_end_the_run(tmp_path):
    with pytest.raises(UserError, match="not finite.*clip-"):
        fakes.train(fakes.Run(str(tmp_path)), system=fakes.System({2: "all", 3: "all", 4: "all"}))
    assert not (tmp_path / "DONE").exists()


def test_held_out_losses_and_previews(tmp_path):
    run = fakes.Run(str(tmp_path), every=Every(log=1, save=8, sample=4, evaluate=4))
    fakes.train(run)
    judged = [line for line in lines(tmp_path) if "held_out" in line]
    assert [line["step"] for line in judged] == [4, 8]
    assert list(judged[0]["held_out"]["video"]) == ["0.1", "0.3", "0.5", "0.7", "0.9", "0.95"]
    clips = sorted(p.name for p in (tmp_path / "samples" / "step-00000008").iterdir())
    assert clips == ["00.mp4", "01.mp4", "prompts.json"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_watching_a_run_does_not_change_it(tmp_path):
    fakes.train(fakes.Run(str(tmp_path / "a")))
    fakes.train(fakes.Run(str(tmp_path / "b"), every=Every(log=1, save=2, sample=3, evaluate=3)))
    last = "checkpoints/step-00000008"
    assert fakes.hashes(tmp_path / "a" / last) == fakes.hashes(tmp_path / "b" / last)


def test_a_changed_science_key_is_an_error_that_names_it(tmp_path):
    run = fakes.Run(str(tmp_path), steps=4)
    fakes.train(run)
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.01 -> 0\.02"):
        fakes.train(replace(run, optimizer=replace(run.optimizer, lr=0.02)))
    more = replace(run, steps=6, every=Every(log=2, save=2), engine=Engine(precision="fp32", workers=0, threads=1))
    assert fakes.train(more) == 0


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    import fcntl

    tmp_path.joinpath(".lock").touch()
    with open(tmp_path / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process"):
            fakes.train(fakes.Run(str(tmp_path)))


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        fakes.train(fakes.Run(str(tmp_path / "file" / "run")))


def test_the_log_loses_the_lines_beyond_the_checkpoint(tmp_path):
    run = fakes.Run(str(tmp_path), steps=4)
    fakes.train(run)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    fakes.train(replace(run, steps=6))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_statistics_are_fitted_once_and_the_frozen_codec_stays_frozen(tmp_path):
    run = fakes.Run(str(tmp_path), steps=4)
    fakes.train(run)
    written = (tmp_path / "latents.safetensors").stat().st_mtime_ns
    fakes.train(replace(run, steps=5))
    assert (tmp_path / "latents.safetensors").stat().st_mtime_ns == written
    weights, fresh = load_weights(tmp_path)[0], fakes.System().state_dict()
    assert weights["codec.scale"] > 0
    assert torch.equal(weights["codec.frozen.weight"], fresh["codec.frozen.weight"])


def test_environment_and_config_are_kept(tmp_path):
    import yaml

    run = fakes.Run(str(tmp_path), steps=1)
    fakes.train(run)
    known = json.loads((tmp_path / "environment.json").read_text())
    assert {"packages", "commit", "command", "processor"} <= known.keys()
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored["optimizer"]["lr"] == asdict(run)["optimizer"]["lr"]


def test_wrong_starts_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="deepspeed tools/train.py"):
        fakes.train(fakes.Run(str(tmp_path), engine=Engine(config="configs/deepspeed/zero1.json")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="deepspeed --num_gpus"):
        fakes.train(fakes.Run(str(tmp_path)))


def test_signals_are_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    Stop().restore()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_slow_clip_stands_in_the_log_once(tmp_path, monkeypatch):
    read = fakes.Clips.__getitem__
    took = {"clip-3": 40.0}
    monkeypatch.setattr(
        fakes.Clips, "__getitem__", lambda self, p: (s := read(self, p)) | {"took": took.get(s["id"], 0.5)}
    )
    fakes.train(fakes.Run(str(tmp_path), steps=12))
    found = [line["slow"] for line in lines(tmp_path) if "slow" in line]
    assert found == [{"clips": 1, "new": [{"id": "clip-3", "seconds": 40.0, "median": 0.5}]}]
