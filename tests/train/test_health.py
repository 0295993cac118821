"""Numbers that go wrong: spikes, going back, steps left out; memory that is not enough; ranks that fall silent."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch

from mmdiff.data.plans import BucketPlan
from mmdiff.errors import UserError
from mmdiff.train import loop, memory, pulse
from mmdiff.train.checkpoint import load_weights
from mmdiff.train.health import ENOUGH, RECENT, Watch, spoken_steps, stretches
from mmdiff.train.ranks import OwnError, Ranks
from mmdiff.train.settings import Engine, Every, Health
from mmdiff.train.stop import Stop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import launch


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_steps_to_skip_can_be_said_in_a_word():
    assert spoken_steps("120-140, 300") == [[120, 140], [300, 300]]
    assert stretches("2-3,5", after=0, steps=6) == stretches([(2, 3), (5, 5)], after=0, steps=6)
    for wrong in ("", "140-120", "1,,2", "-3", "1-2-3", "x", "9" * 99, "\u0661"):
        with pytest.raises(UserError, match="health.skip"):
            spoken_steps(wrong)


# ---- spikes --------------------------------------------------------------------------------------------------------


def test_a_spike_is_a_multiple_of_the_recent_median_and_needs_enough_of_them():
    watch = Watch(Health(spike=5.0), {})
    assert all(watch.see(loss, skipped=False) == 0 for loss in [100.0] + [1.0] * (ENOUGH - 1))
    assert watch.see(4.9, skipped=False) == 0 and watch.see(5.1, skipped=False) == 5.1
    assert watch.see(float("nan"), skipped=True) == 0 and float("nan") not in watch.notes["recent"]
    for _ in range(2 * RECENT):
        watch.see(10.0, skipped=False)
    assert watch.see(40.0, skipped=False) == 0  # the usual has become another
    quiet = Watch(Health(spike=0.0), {})
    assert all(quiet.see(loss, skipped=False) == 0 for loss in [1.0] * ENOUGH + [1e9])


SPIKE = 34
LONG = fakes.Run("", steps=40, every=Every(log=1, save=10))


def leaping() -> fakes.System:
    return fakes.System(leaps={SPIKE: "all"})


def test_a_spike_is_told_with_its_clips_and_by_itself_changes_nothing(tmp_path, capfd):
    for name, spike in (("told", 5.0), ("untold", 0.0)):
        run = replace(LONG, run=str(tmp_path / name), every=Every(log=40, save=10), health=Health(spike=spike))
        assert fakes.train(run, system=leaping()) == 0
    record, last = lines(tmp_path / "told")
    assert record["step"] == SPIKE and record["spike"] > 50 and len(record["ids"]) == 8 and last["step"] == 40
    assert f"step {SPIKE}: loss" in (said := capfd.readouterr().err) and record["ids"][0] in said
    end = "checkpoints/step-00000040"
    assert fakes.hashes(tmp_path / "told" / end) == fakes.hashes(tmp_path / "untold" / end)


class Stopping(fakes.System):
    """Leaps, and asks for a stop at some steps."""

    def __init__(self, stop: Stop, *at: int) -> None:
        super().__init__(leaps={SPIKE: "all"})
        self.stop, self.at = stop, at

    def loss(self, batch, *, seed, step, player):
        self.stop.asked = step in self.at
        return super().loss(batch, seed=seed, step=step, player=player)


def test_going_back_equals_never_having_seen_the_clips_since_the_checkpoint_and_resumes_exactly(tmp_path):
    skipped = replace(LONG, run=str(tmp_path / "skipped"), health=Health(skip=[(31, SPIKE)]))
    assert fakes.train(skipped) == 0
    assert [line["step"] for line in lines(tmp_path / "skipped")] == [*range(1, 31), *range(35, 41)]
    back = replace(LONG, run=str(tmp_path / "back"), health=Health(rollbacks=1))
    assert fakes.train(back, system=leaping()) == 0
    told = [line for line in lines(tmp_path / "back") if "spike" in line]
    assert [(line["step"], line["rolled_back_to"]) for line in told] == [(SPIKE, 30)]
    cut, stop = replace(back, run=str(tmp_path / "cut")), Stop()
    for code in (75, 75, 0):  # stopped before the spike and after it: neither moves where the run goes back to
        assert fakes.train(cut, system=Stopping(stop, *([32, 37] if code else [])), stop=stop) == code
    end = "checkpoints/step-00000040"
    assert fakes.hashes(tmp_path / "back" / end) == fakes.hashes(tmp_path / "skipped" / end)
    assert fakes.hashes(tmp_path / "cut" / end) == fakes.hashes(tmp_path / "back" / end)


def test_a_run_that_spikes_once_more_than_it_may_go_back_ends_with_the_clips(tmp_path):
    system = fakes.System(leaps={SPIKE: "all", 36: "all"})
    with pytest.raises(UserError, match="at step 36 is .* times the usual.*health.rollbacks.*clip-"):
        fakes.train(replace(LONG, run=str(tmp_path), health=Health(rollbacks=1)), system=system)
    assert load_weights(tmp_path)[1] == 30 and not (tmp_path / "DONE").exists()


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    run = replace(LONG, run=str(tmp_path), every=Every(log=1, save=0), health=Health(rollbacks=1))
    assert fakes.train(run, system=leaping()) == 0
    (told,) = [line for line in lines(tmp_path) if "spike" in line]
    assert told["step"] == SPIKE and "rolled_back_to" not in told


def test_stretches_are_what_is_left_between_the_steps_to_skip():
    assert stretches([], after=0, steps=8) == [(0, 8)]
    assert stretches([(3, 4)], after=0, steps=8) == [(0, 2), (4, 8)]
    assert stretches([(5, 6), (1, 2)], after=0, steps=8) == [(2, 4), (6, 8)]
    assert stretches([(3, 6), (4, 5)], after=3, steps=8) == [(6, 8)]
    assert stretches([(2, 3)], after=8, steps=8) == []
    for wrong in ((0, 2), (3, 2), (5, 8)):
        with pytest.raises(UserError, match="health.skip"):
            stretches([wrong], after=0, steps=8)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_the_peak_is_of_what_was_held_since_the_last_look():
    memory.peak(torch.device("cpu"))
    before = memory.peak(torch.device("cpu"))
    torch.ones(50_000_000)
    assert memory.peak(torch.device("cpu")) - before > 0.15
    assert memory.peak(torch.device("cpu")) - before < 0.15


def test_memory_that_is_not_enough_is_told_with_what_to_turn(tmp_path, monkeypatch):
    def greedy(*_):
        return torch.empty(1 << 60)

    monkeypatch.setattr(loop, "train_step", greedy)
    with pytest.raises(OwnError, match="Rank 0, training of step 1, clips clip-.*not enough.*accumulate.*bf16.*zero2"):
        fakes.train(fakes.Run(str(tmp_path)))
    assert memory.advice(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert memory.advice(RuntimeError("shapes do not match")) is None


class Rehearsed(fakes.Clips):
    """Says that steps 3 and 6 should be tried first."""

    def plan(self, share):
        return replace(super().plan(share), rehearsal=(3, 6))


def test_a_rehearsal_goes_through_the_largest_steps_and_changes_nothing(tmp_path, monkeypatch):
    fakes.train(fakes.Run(str(tmp_path / "plain")))
    seen, real = [], loop.rehearse
    monkeypatch.setattr(loop, "rehearse", lambda *a: real(*a[:-1], lambda *now: seen.append(now)))
    monkeypatch.setattr(fakes, "Clips", Rehearsed)
    fakes.train(fakes.Run(str(tmp_path / "tried"), accumulate=2))
    fakes.train(fakes.Run(str(tmp_path / "plain2"), accumulate=2, health=Health(rehearse=False)))
    assert [(phase, step) for phase, step, _ in seen] == [("rehearsal", 0)] * 2
    assert seen[0][2] == [fakes.Clips()[i]["id"] for i in range(24, 32)]
    peaks = json.loads((tmp_path / "tried" / "memory.json").read_text())["peaks"]
    assert list(peaks) == ["video 4x3x1x2x2"] and all(0 < value < 100 for value in peaks.values())
    end = "checkpoints/step-00000008"
    assert fakes.hashes(tmp_path / "tried" / end) == fakes.hashes(tmp_path / "plain2" / end)


def test_every_bucket_is_rehearsed_also_one_that_waits_for_its_turn():
    plan = BucketPlan(counts=(40, 3, 0, 8), clips=(4, 4, 4, 2), seed=1)
    buckets = {plan.step(step)[0][0][0] for step in plan.rehearsal}
    assert buckets == {0, 1, 3} and len(plan.rehearsal) == 3


# ---- signs of life -------------------------------------------------------------------------------------------------


def test_a_pulse_beats_says_where_it_is_and_leaves_no_file_behind(tmp_path):
    with pulse.pulse(tmp_path, Ranks(), every=0.05) as here:
        here.at("training", 7, [f"clip-{i}" for i in range(40)])
        time.sleep(0.2)
        said = json.loads((tmp_path / "ranks" / "rank-00000.json").read_text())
    assert (said["phase"], said["step"], len(said["ids"])) == ("training", 7, pulse.NAMED)
    assert not (tmp_path / "ranks").exists()


def test_whoever_fails_names_its_place_and_who_has_been_silent(tmp_path, capfd):
    for rank, phase in ((1, "training"), (2, "data")):
        other = pulse.Pulse(tmp_path, Ranks(rank=rank, world=3), 1.0)
        other.at(phase, 6, ["x"] * (rank == 1))
        other.beat()
    (tmp_path / "ranks/rank-00003.json").write_text('{"rank": 3, "phase": "data", "step": 6, "ids": [1]}')  # garbled
    with pytest.raises(RuntimeError), pulse.pulse(tmp_path, Ranks(world=4), every=1.0) as here:
        here.at("training", 7, ["a", "b"])
        raise RuntimeError("Timed out")
    said = capfd.readouterr().err
    assert "rank 0 failed in training of step 7, clips a, b\n" in said
    assert "rank 1 was last heard 0 s ago in training of step 6, clips x\n" in said
    assert "rank 2 was last heard 0 s ago in data of step 6\n" in said
    assert "rank 3" not in said


def test_a_rank_that_is_stopped_lets_the_other_fail_in_time_and_be_named(tmp_path):
    script, port = str(Path(__file__).with_name("ranks_do.py")), launch.free_port()
    both = [launch.rank(script, str(tmp_path), "--stuck", rank=rank, world=2, port=port) for rank in (0, 1)]
    try:
        code, output = launch.finish(both[0], 200)
        assert both[1].poll() is None  # it is stopped, not gone
    finally:
        both[1].kill()
        both[1].communicate()
    assert code == 1, output[-3000:]
    waited = json.loads((tmp_path / "waited.json").read_text())
    assert 4 < waited < 25, "engine.timeout was 5 s"
    assert f"rank 0 failed in training of step 3, clips {fakes.Clips()[16]['id']}" in output
    assert "in training of step 3, clips " + fakes.second_half(step=3) in output.split("rank 1 was last heard ")[1]
    assert [line["step"] for line in lines(tmp_path / "stuck")] == [1, 2]
    assert Engine().timeout == 600
