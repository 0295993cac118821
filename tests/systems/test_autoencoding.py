"""Training an autoencoder: what each term of its loss is, when the critic speaks, and by how much."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.coder import Plan
from mmdiff.autoencoders.vae import VAE
from mmdiff.batch import Batch, ClipShape
from mmdiff.errors import UserError
from mmdiff.models.discriminator import PatchDiscriminator
from mmdiff.models.tower import Perceptual, Tower
from mmdiff.systems.autoencoding import Autoencoding, balance, hinge
from mmdiff.train import optimizer
from mmdiff.train.settings import Optimizer

SHAPE = ClipShape(frames=3, fps=8, size=(16, 16), rate=8000)


def batch(n: int = 2) -> Batch:
    video = noise.normal((3, 3, 16, 16), keys=list(range(n))).clamp(-1, 1)
    valid = {"video": torch.ones(n, dtype=torch.bool)}
    ids = [f"clip-{i}" for i in range(n)]
    return Batch(video=video, valid=valid, id=ids, text=[""] * n, fps=torch.full((n,), 8.0), rate=8000)


def system(**settings: object) -> Autoencoding:
    torch.manual_seed(0)
    plan = Plan(widths=[8, 16], strides=[[2, 2, 2]], kernel=[3, 3, 3], blocks=1, groups=4, first=1)
    codec = VAE(channels=3, latent=4, plan=plan)
    critic = PatchDiscriminator(channels=3, widths=[8, 16])
    return Autoencoding(autoencoder=codec, shape=SHAPE, discriminator=critic, **settings)  # type: ignore[arg-type]


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at, retain_graph=True)[0]


def test_terms_are_sums_over_the_clip_divided_by_its_numbers() -> None:
    model, clips = system(error="l1", kl=0.5, start=99), batch()
    loss, logs = model.loss(clips, seed=0, step=1)
    keys = noise.keys(0, "posterior", 1, clips["id"])
    y, posterior = model.rebuild(clips["video"], keys=keys)
    error = (clips["video"] - y).abs().flatten(1).sum(1)
    assert torch.allclose(loss, ((error + 0.5 * posterior.kl()) / clips["video"][0].numel()).mean())
    assert torch.allclose(logs["kl_nats"], posterior.kl().mean())


def test_draws_belong_to_the_clip() -> None:
    model, both = system(start=99), batch()
    alone = {**both, "video": both["video"][1:], "id": both["id"][1:], "valid": {"video": torch.tensor([True])}}
    half = {**both, "valid": {"video": torch.tensor([False, True])}}
    one, other = model.loss(alone, seed=0, step=5)[0], model.loss(half, seed=0, step=5)[0]  # type: ignore[arg-type]
    assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one, model.loss(both, seed=0, step=5)[0])


def test_a_batch_without_the_modality_teaches_nothing() -> None:
    model, clips = system(start=0), batch()
    clips["valid"]["video"][:] = False
    for player, module in model.players().items():
        loss, _ = model.loss(clips, seed=0, step=1, player=player)
        loss.backward()
        assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in module.parameters())


# ---- the critic ----------------------------------------------------------------------------------------------------


def test_the_critic_is_untouched_before_its_start() -> None:
    model, clips = system(start=3), batch()
    before = copy.deepcopy(model.discriminator.state_dict())
    step = optimizer.make(model.discriminator, Optimizer(lr=0.1), clip=1.0)
    for i in (1, 2):
        model.loss(clips, seed=0, step=i, player="discriminator")[0].backward()
        step.step()
        step.zero_grad()
        assert "critic" not in model.loss(clips, seed=0, step=i)[1]
    assert all(torch.equal(t, before[name]) for name, t in model.discriminator.state_dict().items())
    model.loss(clips, seed=0, step=3, player="discriminator")[0].backward()
    step.step()
    assert not torch.equal(model.discriminator.head.weight, before["head.weight"])
    assert "critic" in model.loss(clips, seed=0, step=3)[1]


def test_each_player_has_its_own_gradient() -> None:
    model, clips = system(start=0), batch()
    model.loss(clips, seed=0, step=1, player="discriminator")[0].backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    model.discriminator.requires_grad_(False)
    model.loss(clips, seed=0, step=1)[0].backward()
    assert all(p.grad is not None for p in model.autoencoder.parameters())


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_share_is_blind_to_the_scale_of_the_critic(scale: float) -> None:
    """share x critic has the gradient of the rest at the last layer, whatever the critic's units are."""
    model, x = system(), batch()["video"]
    y, posterior = model.rebuild(x, keys=[1, 2])
    error, last = model.errors(x, y, posterior)[0], model.autoencoder.last
    fooled = -scale * model.discriminator(y).mean()
    share = balance(error, fooled, at=last)
    assert not share.requires_grad
    pulled = gradient(share * fooled, last).norm()
    floor = 1e-4 / float(gradient(fooled, last).norm())  # of the denominator, relative to the rest of it
    assert torch.allclose(pulled * (1 + floor), gradient(error, last).norm(), rtol=1e-4)
    assert balance(error, 0 * fooled, at=last) <= 1e4


def test_hinge_is_zero_exactly_beyond_the_margins() -> None:
    assert hinge(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -5.0])) == 0
    assert hinge(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert hinge(torch.tensor([0.5]), torch.tensor([-1.0])) == 0.25


# ---- the tower, previews -------------------------------------------------------------------------------------------


def test_the_towers_distance() -> None:
    torch.manual_seed(0)
    seen, x = Perceptual(run="nowhere", tower=Tower(widths=[8, 8])), batch()["video"]
    assert not seen.fitted and not any(p.requires_grad for p in seen.parameters())
    seen.adopt(Tower(widths=[8, 8]).state_dict())
    assert seen.fitted and torch.equal(seen(x, x), torch.zeros(2))
    steps = torch.stack([seen(x, (x + size * x.flip(0)).clamp(-1, 1)) for size in (0.1, 0.3, 0.9)])
    assert (steps.diff(dim=0) > 0).all()
    model = system(perceptual=seen, perceptual_weight=2.0, start=99)
    y, posterior = model.rebuild(x, keys=None)
    total, logs = model.errors(x, y, posterior)
    rest = total - 2 * seen(x, y).mean()
    assert torch.allclose(rest, logs["loss/video"] + model.kl * logs["kl_nats"] / x[0].numel(), atol=1e-6)


def test_previews_stand_beside_the_originals() -> None:
    model, clips = system(), batch()
    shown = model.generate(clips, seed=0)["video"]
    assert shown.shape[-1] == 32 and torch.equal(shown[..., :16], clips["video"]) and shown.abs().max() <= 1
    with pytest.raises(UserError, match="reconstruct.py"):
        model.generate(Batch(text=["a red ball"], id=["0"]), seed=0)


def test_held_out_error_grows_with_noise_in_the_code() -> None:
    model, clips = system(), batch()
    curve = model.held_out(clips, times=(0.0, 0.5), seed=0)["video"]
    y, _ = model.rebuild(clips["video"], keys=None)
    assert curve[0] == pytest.approx(float((y - clips["video"]).square().mean()))
    assert curve == model.held_out(clips, times=(0.0, 0.5), seed=0)["video"]
