"""Two ranks under ZeRO-0 to 3, all from one launch: they agree with one process, and resuming with not stopping."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch
from safetensors.torch import load_file

from mmdiff.errors import UserError
from mmdiff.train import zero
from mmdiff.train.checkpoint import Checkpoints, load_weights, read_manifest
from mmdiff.train.engine import make
from mmdiff.train.ranks import Ranks
from mmdiff.train.settings import Engine, Every
from mmdiff.train.stop import Stop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import launch
from ranks_do import ENGINES, STAGES

BEGUN, LAST = "checkpoints/step-00000003", "checkpoints/step-00000008"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What ranks_do.py left, beside the same run in one process."""
    folder = tmp_path_factory.mktemp("zero")
    fakes.train(fakes.Run(str(folder / "alone"), accumulate=2))
    fakes.train(fakes.Run(str(folder / "torch"), accumulate=2, every=Every(log=1, save=3)), stop=Third())
    script = str(Path(__file__).with_name("ranks_do.py"))
    launched = [launch.deepspeed(script, str(folder)), launch.rank(script, str(folder))]
    for code, output in map(launch.finish, launched):
        assert code == 0, output[-4000:]
    return folder


class Third(Stop):
    """Asked to stop at the third look."""

    @property
    def asked(self) -> bool:
        self.looks = getattr(self, "looks", 0) + 1
        return self.looks >= 3

    @asked.setter
    def asked(self, value: bool) -> None: ...


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_every_part_ended_as_it_should_on_both_ranks(folder):
    first, second = (json.loads((folder / f"codes{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert "stage 0" in first.pop("muon1")
    assert {name: code for name, code in first.items() if code} == {f"stop{stage}": 75 for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ema", [True, False])
def test_two_ranks_learn_what_one_process_learns(folder, stage, ema):
    ours, theirs = (load_weights(folder / name, ema=ema)[0] for name in (f"whole{stage}", "alone"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-7, rtol=0)
    for a, b in zip(lines(folder / f"whole{stage}"), lines(folder / "alone")):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
        assert (a["lr"], a["samples"]) == (b["lr"], b["samples"])


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_equals_not_stopping_bit_for_bit(folder, stage):
    whole, cut = folder / f"whole{stage}", folder / f"cut{stage}"
    assert [line["loss_hex"] for line in lines(whole)] == [line["loss_hex"] for line in lines(cut)]
    assert fakes.hashes(whole / LAST) == fakes.hashes(cut / LAST)
    assert (folder / f"cut{stage}" / "checkpoints" / "step-00000003").is_dir()  # a stop on one rank stops both


def test_weights_under_several_names_are_kept_once_and_resume(folder):
    ours, theirs = (load_weights(folder / name, ema=False)[0] for name in ("shared", "whole3"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stage", STAGES)
def test_watching_under_zero_shows_the_averaged_weights(folder, stage):
    judged = [line for line in lines(folder / f"cut{stage}") if "held_out" in line]
    assert [line["step"] for line in judged] == [5, 8]
    reference = next(line for line in lines(folder / "cut0") if line["step"] == 8)["held_out"]["video"]
    assert judged[1]["held_out"]["video"] == pytest.approx(reference, abs=1e-5)
    assert (folder / f"cut{stage}" / "samples" / "step-00000008" / "00.mp4").is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_on_one_rank_is_skipped_on_both(folder, stage):
    skipped = [line for line in lines(folder / f"nan{stage}") if line["skipped"]]
    assert [line["step"] for line in skipped] == [3, 6]
    assert len(skipped[0]["ids"]) == 4 and fakes.second_half(step=3) in skipped[0]["ids"]  # only that rank's clips
    assert len(skipped[1]["ids"]) == 8 and skipped[1]["loss"] < 10  # an infinite gradient does not say whose it is
    manifest = json.loads((folder / f"nan{stage}" / LAST / "manifest.json").read_text())
    assert manifest["updates"] == {"learner": 6}
    ours, theirs = (load_weights(folder / f"nan{n}")[0] for n in (stage, 0))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


# ---- moving: torch or DeepSpeed, ZeRO-0 to 3, one rank or two ------------------------------------------------------


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds, by file and name; which rank wrote a moment is not asked."""
    files = sorted(checkpoint.glob("*.safetensors"))
    return {f"{path.name.split('-')[0]}/{name}": t for path in files for name, t in load_file(path).items()}


@pytest.mark.parametrize("reader", ENGINES)
def test_weights_average_and_moments_move_anywhere_bit_for_bit(folder, reader):
    for source in ENGINES:
        before, after = folder / source / BEGUN, folder / "copies" / f"{source}-{reader}" / BEGUN
        if reader == "torch":
            after = copy(before, after)
        (wrote, read), (old, new) = map(state, (before, after)), map(read_manifest, (before, after))
        assert sum("exp_avg_sq" in name for name in wrote) == 12 and sum("ema" in name for name in wrote) == 12
        assert wrote.keys() == read.keys() and old["updates"] == new["updates"] == {"learner": 3}
        assert all(torch.equal(wrote[name], read[name]) for name in wrote), source


def copy(before: Path, after: Path) -> Path:
    """A checkpoint that the torch engine has read and written again."""
    built = make(fakes.Run(""), fakes.System(), Ranks())
    assert Checkpoints(before.parents[1], keep=2, ranks=Ranks()).load(built) == 3
    assert not Checkpoints(after.parents[1], keep=2, ranks=Ranks()).save(built, 3, {})
    return after


def test_whoever_continues_sees_the_same_samples_and_learns_the_same(folder):
    back = folder / "moved" / "world2-zero3-torch"
    shutil.copytree(folder / "world2-zero3" / "checkpoints", back / "checkpoints")
    fakes.train(fakes.Run(str(back), accumulate=2))
    theirs, _, _ = load_weights(folder / "alone")
    for run in sorted((folder / "moved").iterdir()):
        ours, step, _ = load_weights(run)
        assert step == 8 and [line["step"] for line in lines(run)] == [4, 5, 6, 7, 8]
        for a, b in zip(lines(run), lines(folder / "alone")[3:], strict=True):
            assert (a["loss"], a["lr"]) == (pytest.approx(b["loss"], abs=1e-6), b["lr"])
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    assert len(list((folder / "moved").iterdir())) == len(ENGINES)


@pytest.mark.parametrize("stage", [2, 3])
def test_moments_on_the_cpu_learn_the_same_across_a_stop(folder, stage):
    ours, theirs = (load_weights(folder / name)[0] for name in (f"aside{stage}", "alone"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", [2, 3])
def test_computing_blocks_twice_learns_the_same_bit_for_bit(folder, stage):
    assert fakes.hashes(folder / f"twice{stage}" / LAST) == fakes.hashes(folder / f"whole{stage}" / LAST)


def test_going_back_after_a_spike_equals_leaving_the_steps_out(folder):
    (told,) = [line for line in lines(folder / "back") if "spike" in line]
    assert (told["step"], told["rolled_back_to"]) == (26, 24)
    assert len(told["ids"]) == 4 and fakes.second_half(step=26) in told["ids"]  # those of the rank that leapt
    end = "checkpoints/step-00000028"
    assert fakes.hashes(folder / "back" / end) == fakes.hashes(folder / "skipped" / end)


def test_bf16_is_autocast_over_float32_weights(folder):
    weights, _, _ = load_weights(folder / "bf16", ema=False)
    assert {t.dtype for t in weights.values()} == {torch.float32}
    exact, _, _ = load_weights(folder / "whole3", ema=False)
    enter = "learner.net.enter.weight"
    assert 0 < (weights[enter] - exact[enter]).abs().max() < 0.05


def test_every_rank_wrote_its_share_of_the_moments(folder):
    names = {path.name for path in (folder / "whole2" / LAST).glob("optimizer-*")}
    assert names == {"optimizer-00000.safetensors", "optimizer-00001.safetensors"}


# ---- the JSON ------------------------------------------------------------------------------------------------------


def configured(tmp_path: Path, tree: object, **changes: object) -> dict:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(tree))
    return zero.configure(replace(fakes.Run("run", engine=Engine(config=str(path))), **changes), world=2)


def test_the_json_goes_through_and_the_run_fills_in_its_sizes(tmp_path):
    tree = {"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}
    made = configured(tmp_path, tree | {"train_batch_size": "auto"}, accumulate=2)
    assert made["zero_optimization"] == tree["zero_optimization"] and made["wall_clock_breakdown"]
    assert made["train_batch_size"] == 8 and made["train_micro_batch_size_per_gpu"] == 2
    assert made["gradient_accumulation_steps"] == 2 and made["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    "tree, word",
    [
        ({"train_batch_size": 16}, "train_batch_size is 16, but the run says 8"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
        ({"gradient_clipping": 0.5}, "gradient_clipping"),
        ({"optimizer": {"type": "Adam"}}, "remove the key 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "remove the key 'scheduler'"),
        ({"bf16": {"enabled": True}}, "engine.precision=bf16"),
        ({"fp16": {"enabled": True}}, "engine.precision=bf16"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "engine.checkpoint_activations=true"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param to nvme"),
        ([], "JSON object"),
    ],
)
def test_a_json_that_contradicts_the_run_is_an_error_that_names_the_key(tmp_path, tree, word):
    with pytest.raises(UserError, match=word):
        configured(tmp_path, tree)


def test_impossible_combinations_are_refused():
    run, one = fakes.Run("run"), fakes.System().players()
    with pytest.raises(UserError, match="must be 0, 1, 2 or 3"):
        zero.refuse(run, 4, one)
    with pytest.raises(UserError, match="2 players"):
        zero.refuse(run, 3, one | {"other": fakes.Net()})
    with pytest.raises(UserError, match="frozen parameter scale|frozen parameter frozen"):
        zero.refuse(run, 3, {"codec": fakes.Codec()})


def test_the_shipped_configs_are_accepted():
    for path in sorted((launch.ROOT / "configs" / "deepspeed").glob("*.json")):
        run = fakes.Run("run", engine=Engine(config=str(path)))
        assert zero.configure(run, world=2)["zero_optimization"]["stage"] == int(path.stem[-1])
