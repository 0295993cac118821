"""Views of a request: what each is told, what no guide asks for is not made, and what the config says is what runs."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape
from mmdiff.build import sampling_parts
from mmdiff.conditioners import Text
from mmdiff.config import spoken
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.guidance import auto, image_and_text, isolation, plain, shallow
from mmdiff.models.dit import DiT
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.models.meeting import Apart
from mmdiff.process import Cosine, Linear, LossAware, Uniform
from mmdiff.sampling import SAMPLERS, ancestral, uniform
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.joint import Joint
from mmdiff.systems.views import ViewsOf, fixed_entries

SHAPE = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
SHAPES = {"video": (3, 4, 4, 4), "audio": (1, 16)}
ASKED = Batch(text=["a red ball falls", "two cubes"], id=["a", "b"])


def randomised(module: Any) -> Any:
    for i, (name, p) in enumerate(module.named_parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return module


def system(joint: bool = True, **changes: Any) -> Diffusion:
    if joint:
        video = BranchSpec(channels=3, width=16, patch=(1, 2, 2), attention="factorised")
        audio = BranchSpec(channels=1, width=16, patch=(4, 1, 1))
        net: Any = JointDiT(video=video, audio=audio, depth=2, heads=2, text_width=8)
        parts: Any = {"video": Pixels(), "audio": Pixels(channels=1)}
    else:
        net = DiT(channels=3, width=16, depth=2, heads=2, patch=(1, 2, 2), text_width=8)
        parts = {"autoencoder": Pixels()}
    text = Text(width=8, depth=1, heads=2, length=64)
    denoiser = Denoiser(net, process=Linear(), target="flow", draw=Uniform())
    kind: Any = Joint if joint else Diffusion
    return cast(Diffusion, randomised(kind(conditioner=text, denoiser=denoiser, shape=SHAPE, **parts, **changes)))


def views(of: Diffusion, asked: Batch = ASKED) -> ViewsOf:
    batch = of.blank(asked)
    return ViewsOf(of, batch, fixed_entries(of, batch))


def state(of: Diffusion) -> tuple[Tensor, Tensor]:
    return noise.normal(of.latent_shape(), keys=[1, 2]), torch.tensor([0.5, 0.5])


# ---- what a view is told -------------------------------------------------------------------------------------------


def test_isolated_modalities_do_not_hear_each_other() -> None:
    """The view is the network whose branches stay apart, with the same weights, and text is still heard."""
    parts, apart = system(), system()
    apart.denoiser.net.net.meet = Apart()
    apart.denoiser.net.net.bridges = nn.ModuleList(Apart()({}, heads=2, depth=2))
    x, t = state(parts)
    isolated = views(parts).look("isolated")(x, t)
    assert torch.equal(isolated, views(apart).look()(x, t))
    assert not torch.allclose(isolated, views(parts).look()(x, t), atol=1e-4)
    other = x.clone()
    other[:, 192:] += 1  # the sound
    assert torch.equal(views(parts).look("isolated")(other, t)[:, :192], isolated[:, :192])
    assert not torch.equal(views(parts).look("yes")(other, t)[:, :192], views(parts).look("yes")(x, t)[:, :192])


def test_one_modality_cannot_be_isolated() -> None:
    with pytest.raises(UserError, match="two modalities"):
        views(system(joint=False)).look("isolated")


def given_frame(of: Diffusion) -> Batch:
    """A request whose first frame is given."""
    held = torch.zeros(1, 1, 4, 1, 1, dtype=torch.bool)
    held[:, :, 0] = True
    clip = noise.normal((3, 4, 4, 4), keys=[7, 8]).clamp(-0.9, 0.9)
    return cast(Batch, {**ASKED, "video": clip, "held": {"video": held}})


@pytest.mark.parametrize("joint", [False, True])
def test_a_bare_view_has_no_given_frames_and_no_text(joint: bool) -> None:
    parts = system(joint)
    x, t = state(parts)
    empty = cast(Batch, {**ASKED, "text": ["", ""]})
    bare = views(parts, given_frame(parts)).look("bare")(x, t)
    assert torch.equal(bare, views(parts, empty).look()(x, t))
    assert not torch.allclose(bare, views(parts, given_frame(parts)).look("no")(x, t), atol=1e-4)


@pytest.mark.parametrize("joint", [False, True])
def test_image_and_text_move_the_free_frames_alone(joint: bool) -> None:
    parts = system(joint)
    asked = given_frame(parts)
    guide = partial(image_and_text, image=1.5, text=3.0)
    made = parts.generate(asked, seed=0, steps=3, guidance=guide)
    torch.testing.assert_close(made["video"][:, :, 0], asked["video"][:, :, 0])
    plainly = parts.generate(asked, seed=0, steps=3, guidance=3.0)
    same = parts.generate(asked, seed=0, steps=3, guidance=partial(image_and_text, image=1.0, text=3.0))
    assert not torch.allclose(made["video"], plainly["video"], atol=1e-3)
    torch.testing.assert_close(same["video"], plainly["video"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("joint", [False, True])
def test_skipped_blocks_stand_aside(joint: bool) -> None:
    """All skipped: what is left is the way in and out, which no text reaches."""
    parts = system(joint)
    x, t = state(parts)
    look = views(parts).look
    assert not torch.allclose(look(skip=[1])(x, t), look()(x, t), atol=1e-4)
    quiet, spoken_to = (views(parts, cast(Batch, {**ASKED, "text": texts})) for texts in (["", ""], ["a", "b"]))
    net = parts.denoiser.net.net if joint else parts.denoiser.net
    net.vector = None
    del parts.learner["conditioner"].vector
    parts.learner["conditioner"].forward = _only_tokens(parts.learner["conditioner"])
    assert torch.equal(quiet.look(skip=[0, 1])(x, t), spoken_to.look(skip=[0, 1])(x, t))
    with pytest.raises(UserError, match=r"skip \[2\] has to name blocks from 0 to 1"):
        look(skip=[2])


def _only_tokens(text: Any) -> Any:
    def forward(batch: Batch) -> Any:
        n = [len(said) for said in batch["text"]]
        return {"tokens": torch.ones(len(n), 2, 8) * torch.tensor(n)[:, None, None]}

    return forward


def test_a_weaker_model_is_asked_the_same() -> None:
    parts, weak = system(), system()
    for p in weak.parameters():
        p.data.mul_(0.5)
    x, t = state(parts)
    strong, weaker = views(parts).look()(x, t), views(weak).look()(x, t)
    guided = auto(views(parts), weak=lambda v: v.look(by=weak), scale=2.0)(x, t)
    torch.testing.assert_close(guided, weaker + 2 * (strong - weaker))
    other = system(joint=False)
    with pytest.raises(UserError, match="weaker model has latents"):
        views(parts).look(by=other)


# ---- what it costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guide", "evaluations"),
    [
        (1.0, 1),
        (2.0, 2),
        (partial(isolation, scale=2.0, apart=1.5), 3),
        (partial(isolation, scale=1.0, apart=1.5), 2),
        (partial(image_and_text, image=1.2, text=2.0), 3),
        (partial(auto, weak=partial(shallow, skip=[0]), scale=2.0), 2),
        (partial(plain, scale=3.0, interval=(0.9, 1.0)), 1.25),
        (partial(plain, scale={"video": 3.0, "audio": 1.0}), 2),
    ],
)
def test_a_guide_costs_what_it_looks_at(guide: Any, evaluations: float) -> None:
    parts, calls = system(), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    parts.denoiser.net.register_forward_hook(count)
    parts.generate(ASKED, seed=0, steps=4, guidance=guide)
    assert calls == 4 * evaluations


def test_a_scale_of_one_for_one_modality_leaves_it_unguided_for_one_step() -> None:
    parts = system()
    one = parts.generate(ASKED, seed=0, steps=1, guidance=partial(plain, scale={"video": 3.0, "audio": 1.0}))
    torch.testing.assert_close(one["audio"], parts.generate(ASKED, seed=0, steps=1, guidance=1.0)["audio"])
    torch.testing.assert_close(one["video"], parts.generate(ASKED, seed=0, steps=1, guidance=3.0)["video"])


# ---- what a config says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_by_name_by_mapping_and_by_word_is_the_same(name: str) -> None:
    parts = system(joint=False)
    made = [
        parts.generate(ASKED, seed=0, steps=3, sampler=sampling_parts({"sampler": said})["sampler"])["video"]
        for said in (name, {"kind": name}, spoken(name))
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert torch.equal(made[0], parts.generate(ASKED, seed=0, steps=3, sampler=name)["video"])


def test_words_become_parts() -> None:
    assert spoken("2.5") == 2.5 and spoken("heun") == "heun" and spoken("3") == 3
    assert spoken("ancestral:eta=0.5") == {"kind": "ancestral", "eta": 0.5}
    assert spoken("cfg:scale=3,interval=[0.1, 0.8]") == {"kind": "cfg", "scale": 3, "interval": [0.1, 0.8]}
    assert spoken("cfg:scale={video: 4, audio: 3}") == {"kind": "cfg", "scale": {"video": 4, "audio": 3}}
    nested = spoken("dynamic_threshold:guide={kind: cfg, scale: 7}")
    assert nested == {"kind": "dynamic_threshold", "guide": {"kind": "cfg", "scale": 7}}
    with pytest.raises(UserError, match="KIND:KEY=VALUE"):
        spoken("cfg:scale=[1")
    made = sampling_parts({"sampler": spoken("ancestral:eta=0.5"), "guidance": spoken("cfg:scale=3")})
    assert made["sampler"].func is ancestral and made["sampler"].keywords == {"eta": 0.5}


GUIDES: list[Any] = [
    3.0,
    {"kind": "cfg", "scale": 3.0, "rescale": 0.7, "interval": [0.1, 0.9]},
    {"kind": "cfg", "scale": {"video": 4.0, "audio": 3.0}},
    {"kind": "cfg", "scale": {"kind": "ramp", "first": 1.0, "last": 2.5}},
    {"kind": "apg", "scale": 4.0, "limit": 10.0, "momentum": -0.5},
    {"kind": "autoguidance", "scale": 2.0, "weak": {"kind": "shallow", "skip": [1]}},
    {"kind": "isolation", "scale": 3.0, "apart": 2.0},
    {"kind": "image_and_text", "image": 1.5, "text": {"video": 3.0, "audio": 2.0}},
    {"kind": "static_threshold", "guide": 5.0},
    {"kind": "dynamic_threshold", "guide": {"kind": "apg", "scale": 5.0}, "quantile": 0.9},
]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g["kind"] if isinstance(g, dict) else "number")
def test_every_guide_of_a_config_dreams(guide: Any) -> None:
    parts = system()
    made = parts.generate(
        ASKED, seed=0, steps=3, guidance=sampling_parts({"guidance": copy.deepcopy(guide)})["guidance"]
    )
    assert made["video"].isfinite().all() and made["audio"].isfinite().all()
    alone = parts.generate(
        Batch(text=ASKED["text"][1:], id=["b"]),
        seed=0,
        steps=3,
        guidance=sampling_parts({"guidance": guide})["guidance"],
    )
    torch.testing.assert_close(alone["video"][0], made["video"][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"sampler": "hen"}, "sample.sampler: there is no 'hen'; did you mean 'heun'"),
        ({"sampler": {"kind": "cfg"}}, "sample.sampler: there is no 'cfg'"),
        ({"sampler": {"kind": "ancestral", "etta": 1}}, "no key 'etta'; did you mean 'eta'"),
        ({"sampler": {"kind": "euler", "process": {"kind": "linear"}}}, "no key 'process'"),
        ({"guidance": {"kind": "apg"}}, "sample.guidance.scale is missing"),
        ({"guidance": {"kind": "cgf", "scale": 2}}, "did you mean 'cfg'"),
        ({"guidance": {"scale": 2}}, "sample.guidance: there is no None"),
        ({"guidance": {"kind": "cfg", "scale": "high"}}, "sample.guidance.scale is 'high'"),
    ],
)
def test_mistakes_are_named(section: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        sampling_parts(section)


def test_a_target_that_says_nothing_at_the_start_is_refused_at_build() -> None:
    net = DiT(channels=3, width=16, depth=1, heads=2, patch=(1, 2, 2), text_width=8)

    def make(grid: Any) -> Diffusion:
        denoiser = Denoiser(net, process=Cosine(), target="eps", draw=Uniform())
        text = Text(width=8, depth=1, heads=2, length=64)
        return Diffusion(autoencoder=Pixels(), conditioner=text, denoiser=denoiser, shape=SHAPE, grid=grid)

    with pytest.raises(UserError, match="target eps says nothing"):
        make(uniform)
    assert make(partial(uniform, first=0.99)).generate(ASKED, seed=0, steps=3)["video"].isfinite().all()


def test_a_steered_draw_learns_with_the_system() -> None:
    parts = system(joint=False)
    clip = cast(Batch, {**parts.blank(ASKED), "video": noise.normal((3, 4, 4, 4), keys=[1, 2])})
    evenly = parts.loss(clip, seed=0, step=0)[0].detach()
    parts.denoiser.draw = cast(Any, LossAware(bins=4))
    loss = parts.loss(clip, seed=0, step=0)[0]
    torch.testing.assert_close(loss.detach(), evenly)  # as yet it is uniform
    loss.backward()
    grad = parts.denoiser.draw.level.grad
    assert grad is not None and grad.abs().sum() > 0
    assert "learner.denoiser.draw.level" in parts.state_dict()
