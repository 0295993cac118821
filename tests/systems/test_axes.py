"""The axes of joint diffusion as keys: how noise hangs together, how errors are weighed, what is not heard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from test_joint_system import SHAPES, batch, dream, randomised, system, without

from mmdiff import build, config, noise, tasks
from mmdiff.batch import Batch, ClipShape
from mmdiff.coupling import Coupled, IndependentCoupling, MixedCoupling, SharedCoupling, ShiftedCoupling, spread
from mmdiff.models.meeting import Apart, CrossAttention, JointAttention
from mmdiff.process import Linear
from mmdiff.sampling import SAMPLERS
from mmdiff.systems.joint import simplest
from mmdiff.systems.levels import LEVELS, by_level
from mmdiff.systems.views import ViewsOf
from mmdiff.systems.weights import FixedWeights, TokenWeights, UncertaintyWeights
from mmdiff.train import optimizer
from mmdiff.train.update import Update, means

COUPLINGS = {
    "shared": SharedCoupling(),
    "shifted": ShiftedCoupling({"audio": 3.0}),
    "independent": IndependentCoupling(),
    "mixed": MixedCoupling([SharedCoupling(), IndependentCoupling()], [1, 1]),
}
each_coupling = pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)


@each_coupling
def test_the_loss_has_the_times_of_the_coupling(coupling: Any) -> None:
    """By hand: uniforms by purpose, noise by id, the denoiser's errors at packed times."""
    parts, clips = system(coupling=coupling, drop=0.0), batch([0, 1, 2])
    keys = lambda purpose: noise.keys(5, purpose, 7, clips["id"])
    t = coupling(lambda purpose: noise.uniform(keys=keys(purpose)), parts.draw_times, ["video", "audio"])
    eps, x0 = noise.normal((208,), keys=keys("noise")), parts.encode(clips)
    errors = parts.denoiser.errors(x0, parts.condition(clips), t=spread(t, SHAPES), noise=eps)
    want = errors[:, :192].mean(1) + errors[:, 192:].mean(1)
    loss, logs = parts.loss(clips, seed=5, step=7)
    torch.testing.assert_close(loss, want.mean(), atol=1e-5, rtol=1e-5)
    bins = torch.stack([logs[f"loss/audio@{level}"] for level in LEVELS])
    torch.testing.assert_close(bins.sum(0)[0] / 3, logs["loss/audio"], rtol=1e-5, atol=1e-6)
    assert [int(n) for n in bins[:, 1]] == [int(((t["audio"] * 5).long() == i).sum()) for i in range(5)]


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@each_coupling
def test_every_coupling_samples_with_every_sampler(coupling: Any, sampler: str) -> None:
    parts = system(coupling=coupling)
    made = dream(parts, [0, 1], sampler=sampler, steps=2)
    assert made["video"].isfinite().all() and made["audio"].isfinite().all()
    walked = parts.path(parts.blank(Batch(text=["a"])))
    assert isinstance(walked, Coupled if coupling is COUPLINGS["shifted"] else Linear)
    plain = dream(system(), [0, 1], sampler=sampler, steps=2)
    assert torch.equal(made["audio"], plain["audio"]) == (coupling is not COUPLINGS["shifted"])


def test_a_shift_is_seen_by_the_network_while_sampling() -> None:
    """The times that the net is told are those of training: video at t, sound at the shifted t."""
    parts, told = system(coupling=COUPLINGS["shifted"]), cast(list[dict[str, Tensor]], [])
    net: Any = parts.denoiser.net
    net.net.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    dream(parts, [0], steps=4, guidance=1.0)
    for t in told:
        assert t["video"].shape == t["audio"].shape == (1,)
        torch.testing.assert_close(t["audio"], COUPLINGS["shifted"].at(t["video"], "audio"))
    assert [round(float(t["video"]), 2) for t in told] == [1.0, 0.75, 0.5, 0.25]


def test_a_time_that_all_entries_share_is_told_once() -> None:
    t = torch.tensor([0.1, 0.7])
    assert torch.equal(simplest(t[:, None, None].expand(2, 3, 4)), t) and simplest(t) is t
    mixed = t[:, None].repeat(1, 3)
    mixed[1, 2] = 0
    assert simplest(mixed) is mixed


def test_weights_are_their_formulas() -> None:
    errors = {"video": torch.tensor(2.0), "audio": torch.tensor(0.5)}
    share, tokens = {"video": torch.tensor(1.0), "audio": torch.tensor(0.5)}, {"video": 60, "audio": 20}
    value = lambda weights: float(weights(errors, share=share, tokens=tokens).detach())
    assert value(FixedWeights()) == 2.5 and value(FixedWeights({"video": 0.5})) == 1.5
    assert value(TokenWeights()) == pytest.approx(2.0 * 1.5 + 0.5 * 0.5)
    learned = UncertaintyWeights()
    assert value(learned) == 2.5
    learned.log_variance["audio"].data.fill_(1.0)
    assert value(learned) == pytest.approx(2.0 + 0.5 * 2.718281828**-1 + 0.5, rel=1e-6)


def test_learned_weights_learn_and_are_saved() -> None:
    """They go to the inverse of the errors; an absent modality moves nothing."""
    parts = system(weights=UncertaintyWeights())
    names = [name for name, _ in parts.players()["learner"].named_parameters()]
    assert {"weights.log_variance.video", "weights.log_variance.audio"} <= set(names)
    assert {"learner.weights.log_variance.video"} <= set(parts.state_dict())
    first = build.first_names(parts)
    assert len({first[name] for name in first if "log_variance" in name}) == 2
    loss, logs = parts.loss(without(batch([0, 1]), "audio", 0, 1), seed=0, step=0)
    loss.backward()
    s = parts.learner["weights"].log_variance
    assert s["audio"].grad is not None and float(s["audio"].grad) == 0
    torch.testing.assert_close(s["video"].grad, 1 - torch.exp(-s["video"].detach()) * logs["loss/video"])


def test_a_log_by_level_is_one_mean_over_everything() -> None:
    """Micro-batches and ranks add sums and counts; what was never seen is not logged."""
    t = {"video": torch.tensor([0.05, 0.3, 0.99, 1.0])}
    valid = {"video": torch.tensor([True, True, True, False])}
    logs = by_level({"video": torch.tensor([1.0, 2.0, 4.0, 100.0])}, t, valid)
    assert logs["loss/video@0.9"].tolist() == [4.0, 1.0] and logs["loss/video@0.5"].tolist() == [0.0, 0.0]
    update = Update(ids=[])
    update.add(torch.tensor(1.0), logs | {"loss/video": torch.tensor(2.0)}, share=0.5)
    again = by_level({"video": torch.tensor([3.0])}, {"video": torch.tensor([0.15])}, {"video": torch.tensor([True])})
    update.add(torch.tensor(1.0), again | {"loss/video": torch.tensor(3.0)}, share=0.5)
    sums = [value for name in sorted(update.parts) for value in update.parts[name].reshape(-1).tolist()]
    assert means(update.parts, sums) == {
        "loss/video": 2.5, "loss/video@0.1": 2.0, "loss/video@0.3": 2.0, "loss/video@0.9": 4.0
    }  # fmt: skip


@pytest.mark.parametrize("meet", [CrossAttention(), JointAttention()], ids=["cross", "joint"])
def test_the_isolated_view_hears_nothing_of_the_other(meet: Any) -> None:
    parts = randomised(system(meet=meet))
    alone = randomised(system(meet=Apart()))
    weights = {name: w for name, w in parts.state_dict().items() if "bridges" not in name}
    alone.load_state_dict(weights)
    asked = parts.blank(Batch(text=["a red ball"], id=["a"]))
    x, t = noise.normal((208,), keys=[3]), torch.tensor([0.6])
    other = x.clone()
    other[:, 192:] += 1
    view, coupled = ViewsOf(parts, asked, None).look("isolated"), parts.denoise(asked)
    assert torch.equal(view(x, t)[:, :192], view(other, t)[:, :192])
    assert not torch.allclose(coupled(x, t)[:, :192], coupled(other, t)[:, :192], atol=1e-4)
    if isinstance(meet, CrossAttention):
        torch.testing.assert_close(view(x, t), alone.denoise(asked)(x, t))


@pytest.mark.parametrize("missing", list(SHAPES))
@pytest.mark.parametrize("coupling", [COUPLINGS["independent"], COUPLINGS["shifted"]], ids=["independent", "shifted"])
@pytest.mark.parametrize("meet", [CrossAttention(gate="both"), JointAttention(window=0.2)], ids=["cross", "joint"])
def test_an_absent_modality_gives_exactly_no_gradient(missing: str, coupling: Any, meet: Any) -> None:
    parts = system(share=[], coupling=coupling, meet=meet)
    loss, _ = parts.loss(without(batch([0, 1, 2]), missing, 0, 1, 2), seed=0, step=0)
    loss.backward()
    for name, p in parts.denoiser.net.net.named_parameters():  # type: ignore[union-attr]
        if any(f"{part}.{missing}" in name for part in ("branches", "time", "vector", "read")):
            assert p.grad is None or float(p.grad.abs().sum()) == 0, name


# ---- one model for every mode --------------------------------------------------------------------------------------

MODES = {"generate": 2.0, "video_only": 1.0, "audio_only": 1.0, "video_to_audio": 1.0, "audio_to_video": 1.0}


@pytest.mark.parametrize("missing", list(SHAPES))
def test_a_task_takes_a_modality_away_as_if_it_were_not_there(missing: str) -> None:
    (other,) = set(SHAPES) - {missing}
    parts = system(share=[], tasks={f"{other}_only": 1.0})
    loss, logs = parts.loss(batch([0, 1, 2]), seed=0, step=0)
    plain, _ = system(share=[]).loss(without(batch([0, 1, 2]), missing, 0, 1, 2), seed=0, step=0)
    torch.testing.assert_close(loss, plain)
    loss.backward()
    assert logs[f"loss/{missing}"] == 0
    for name, p in parts.denoiser.net.net.named_parameters():  # type: ignore[union-attr]
        if any(f"{part}.{missing}" in name for part in ("branches", "time", "vector")) or "bridges" in name:
            assert p.grad is None or float(p.grad.abs().sum()) == 0, name


def test_one_model_learns_every_mode_by_odds() -> None:
    """The loss of a clip is that of its own task alone, whatever the others do."""
    clips = batch(list(range(24)))
    drawn = tasks.chosen(MODES, seed=0, step=3, ids=clips["id"])
    assert set(drawn) == set(MODES)
    together, logs = system(tasks=MODES).loss(clips, seed=0, step=3)
    singles = [system(tasks={mode: 1.0}).loss(batch([i]), seed=0, step=3)[0] for i, mode in enumerate(drawn)]
    torch.testing.assert_close(together, torch.stack(singles).mean(), rtol=1e-4, atol=1e-5)
    counts = {name: sum(int(logs[f"loss/{name}@{level}"][1]) for level in LEVELS) for name in SHAPES}
    silent = {"video": ("audio_only", "video_to_audio"), "audio": ("video_only", "audio_to_video")}
    assert counts == {name: 24 - sum(mode in modes for mode in drawn) for name, modes in silent.items()}


def test_a_model_may_dream_one_modality_alone() -> None:
    """Asked for pictures without sound it hears none, and gives none."""
    parts = system(share=[])
    asked = Batch(text=["a red ball"], id=["a"], valid={"audio": torch.tensor([False])})
    made = parts.generate(asked, seed=0, steps=3)
    assert not made["audio"].any() and not made["valid"]["audio"].any() and made["valid"]["video"].all()
    both = parts.generate(Batch(text=["a red ball"], id=["a"]), seed=0, steps=3)
    assert both["audio"].any() and not torch.allclose(both["video"], made["video"], atol=1e-3)
    for p in parts.denoiser.net.net.branches["audio"].parameters():  # type: ignore[union-attr,index]
        p.data.mul_(2.0)
    torch.testing.assert_close(parts.generate(asked, seed=0, steps=3)["video"], made["video"])


# ---- from the keys of a config -------------------------------------------------------------------------------------

NODES: dict[str, dict[str, Any]] = {
    "apart": {"meet": {"kind": "apart"}},
    "cross": {"meet": {"kind": "cross_attention", "every": 2, "gate": "both", "clock": "scaled_index"}},
    "one way": {"meet": {"kind": "cross_attention", "direction": "video_to_audio", "window": 0.25}},
    "joint": {"meet": {"kind": "joint_attention", "gate": "other", "clock": "rounded_index"}},
    "all shared": {"share": ["time", "text", "blocks"], "video": {"attention": "full"}},
    "feed-forward shared": {"share": ["feed_forward"]},
}
SYSTEM = {
    "coupling": {
        "kind": "mixed_coupling",
        "parts": [{"kind": "shifted_coupling", "factors": {"audio": 2.0}}, {"kind": "independent_coupling"}],
        "odds": [1, 1],
    },
    "weights": {"kind": "uncertainty_weights"},
    "tasks": MODES,
}


@pytest.mark.parametrize("net", NODES.values(), ids=NODES)
def test_each_mechanism_trains_is_saved_and_samples(net: dict[str, Any], tmp_path: Path) -> None:
    tree = config.read(Path(__file__).parents[2] / "configs" / "sounding_objects" / "smoke.yaml")
    tree = config.overlay(tree, {"system": SYSTEM | {"denoiser": {"net": net}}})
    run = build.parse(tree)
    parts = build.make_system(run)
    data = clips_like(parts.shape)
    parts.fit([data])
    learner = parts.players()["learner"]
    held = optimizer.make(learner, run.optimizer, clip=1.0)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for step in (1, 2):
        parts.loss(data, seed=0, step=step)[0].backward()
        held.step()
        held.zero_grad()
    moved = [name for name, p in learner.named_parameters() if not torch.equal(p, before[name])]
    assert not held.overflow and any("bridges" in name for name in moved) == (net != NODES["apart"])
    asked = Batch(text=["a red ball"], id=["a"])
    made = parts.generate(asked, seed=0, steps=2, guidance=2.0)
    assert made["video"].isfinite().all() and made["audio"].isfinite().all()
    first = build.first_names(parts)
    kept = {name: w for name, w in parts.state_dict().items() if first.get(name, name) == name}
    assert sum(p.numel() for p in parts.parameters()) == sum(kept[name].numel() for name in set(first.values()))
    save_file({name: w.contiguous() for name, w in kept.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(config.dump(tree), encoding="utf-8")
    again, _, _ = build.load(tmp_path)
    assert torch.equal(again.generate(asked, seed=0, steps=2, guidance=2.0)["video"], made["video"])


def clips_like(shape: ClipShape) -> Batch:
    """Random clips, enough to fit statistics on."""
    ids = list(range(24))
    return Batch(
        video=noise.normal((3, shape.frames, *shape.size), keys=ids).clamp(-1, 1),
        audio=noise.normal((1, shape.samples), keys=[100 + i for i in ids]).clamp(-1, 1),
        text=["a red ball falls"] * len(ids),
        fps=torch.full((len(ids),), float(shape.fps)),
        rate=shape.rate,
        valid={name: torch.ones(len(ids), dtype=torch.bool) for name in SHAPES},
        id=[str(i) for i in ids],
    )
