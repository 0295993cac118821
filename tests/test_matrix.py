"""The matrix of what a YAML swaps: whatever two choices go together train a step and make a clip somewhere below.

Cover by pairs: for any two keys and any choice of each, some row holds both, unless REFUSED names them; then a row that
holds them is an error that says why. Everything is as small as it can be.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

import pytest
import torch

from mmdiff import noise
from mmdiff.batch import Batch
from mmdiff.build import make_system, parse
from mmdiff.errors import UserError
from mmdiff.guidance import GUIDES
from mmdiff.parts import PARTS
from mmdiff.process import TARGETS
from mmdiff.sampling import SAMPLERS
from mmdiff.systems import fitting
from mmdiff.systems.diffusion import Diffusion

Tree = dict[str, Any]
Row = dict[str, str]  # key -> name of a choice
Choice = tuple[str, str]

# ---- the choices ---------------------------------------------------------------------------------------------------

CLIP = {"frames": 4, "fps": 8, "size": [8, 8], "rate": 256}  # half a second: 128 samples
FIT = {"depth": 2, "heads": 2, "text_width": 8}
LEVELS = {"widths": [8, 16], "heads": [0, 2], "middle": 2, "blocks": 1, "groups": 4, "text_width": 8, "vector_width": 8}
FLAT: Tree = {"kind": "unet", "channels": 3, "strides": [[1, 2, 2]], **LEVELS}
LONG: Tree = {"kind": "unet", "channels": 1, "strides": [[2, 1, 1]], "kernel": [3, 1, 1], "modality": "audio", **LEVELS}
NETS: dict[str, Tree] = {
    "dit": {"kind": "dit", "channels": 3, "width": 16, "patch": [1, 2, 2], **FIT},
    "unet": FLAT,
    "joint_dit": {
        "kind": "joint_dit",
        "video": {"kind": "branch", "channels": 3, "width": 16, "patch": [1, 2, 2]},
        "audio": {"kind": "branch", "channels": 1, "width": 16},
        **FIT,
    },
    "joint_unet": {"kind": "joint_unet", "video": FLAT, "audio": LONG, "spans": [2, 4, 4], "heads": 2},
    "dit of sound": {"kind": "dit", "channels": 1, "width": 16, "modality": "audio", **FIT},
    "unet of sound": LONG,
}
BOTH = ("joint_dit", "joint_unet")
ALONE = tuple(name for name in NETS if name not in BOTH)

PLAN = {"kind": "plan", "widths": [8, 8], "heads": 0, "groups": 0, "blocks": 1}
SEEN = {"kind": "vae", "channels": 3, "latent": 3, "plan": {**PLAN, "strides": [[1, 2, 2]]}}
HEARD = {"kind": "vae", "channels": 1, "latent": 1, "plan": {**PLAN, "strides": [[2, 1, 1]], "kernel": [3, 1, 1]}}
MEL = {"kind": "mel", "rate": 256, "hop": 8, "window": 32, "bands": 4, "components": 1, "iterations": 2}
CODECS: dict[str, dict[str, Tree]] = {  # every latent has 3 channels of picture or 1 of sound
    "plain": {"video": {"kind": "pixels"}, "audio": {"kind": "pixels", "channels": 1}},
    "fixed": {"video": {"kind": "pca", "patch": [1, 2, 2], "components": 3}, "audio": MEL},
    "learned": {"video": SEEN, "audio": HEARD},
    "pretrained": {
        "video": {"kind": "pretrained", "run": "runs/vae", "part": SEEN},
        "audio": {"kind": "pretrained", "run": "runs/vae_audio", "part": HEARD},
    },
}

EDM = {"kind": "edm"}
SCALED = {"kind": "scaled_linear"}
UNIFORM = {"kind": "uniform"}
TEXT = {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 64}
SAID = ["a red ball falls", "a blue cube slides"]


def squared(weight: Tree) -> Tree:
    return {"kind": "squared", "weight": weight}


CHOICES: dict[str, dict[str, Any]] = {
    "net": NETS,
    "codec": CODECS,
    "process": {
        **{name: {"kind": name} for name in ("linear", "cosine", "ddpm", "scaled_linear", "edm", "svd")},
        "zero_terminal": {"kind": "zero_terminal", "process": SCALED},
        "shifted_snr": {"kind": "shifted_snr", "process": SCALED, "factor": 2.0},
    },
    "target": {name: name for name in TARGETS},
    "draw": {
        "uniform": UNIFORM,
        "logit_normal": {"kind": "logit_normal"},
        "log_normal": {"kind": "log_normal", "process": EDM},
        "shifted": {"kind": "shifted", "draw": UNIFORM},
        "stratified": {"kind": "stratified", "draw": UNIFORM},
        "loss_aware": {"kind": "loss_aware"},
    },
    "loss": {
        **{name: {"kind": name} for name in ("squared", "huber", "pseudo_huber", "hybrid")},
        "directed": {"kind": "directed", "loss": {"kind": "squared"}},
        **{name: squared({"kind": name}) for name in ("min_snr", "edm_weight")},
        "as_target": squared({"kind": "as_target", "target": "v"}),
    },
    "grid": {
        "uniform_grid": {"kind": "uniform_grid"},
        "late": {"kind": "uniform_grid", "first": 0.99},
        "shifted_grid": {"kind": "shifted_grid", "shift": 3.0},
        "karras_grid": {"kind": "karras_grid", "process": EDM},
    },
    "conditioner": {
        "text": TEXT,
        "label": {"kind": "conditioners", "parts": [TEXT, {"kind": "label", "names": SAID, "width": 8}]},
        "numbers": {
            "kind": "conditioners",
            "parts": [
                TEXT,
                {"kind": "frame_rate", "width": 8},
                {"kind": "motion_bucket", "width": 8},
                {"kind": "number", "of": "seconds", "width": 8, "top": 10.0},
            ],
        },
    },
    "tasks": {"none": None, "some": {"generate": 0.5, "extend": 0.5}},
    "sampler": {name: {"kind": name} for name in SAMPLERS},
    "guidance": {
        "off": 1.0,
        "cfg": {"kind": "cfg", "scale": 2.0},
        "ramp": {"kind": "cfg", "scale": {"kind": "ramp"}},
        "apg": {"kind": "apg", "scale": 2.0},
        "autoguidance": {"kind": "autoguidance", "weak": {"kind": "shallow", "skip": [1]}, "scale": 2.0},
        "isolation": {"kind": "isolation", "scale": 2.0, "apart": 2.0},
        "image_and_text": {"kind": "image_and_text", "image": 1.5, "text": 2.0},
        "static_threshold": {"kind": "static_threshold", "guide": 2.0},
        "dynamic_threshold": {"kind": "dynamic_threshold", "guide": 2.0},
    },
    "coupling": {
        "none": None,
        "shared_coupling": {"kind": "shared_coupling"},
        "shifted_coupling": {"kind": "shifted_coupling", "factors": {"audio": 2.0}},
        "independent_coupling": {"kind": "independent_coupling"},
        "mixed_coupling": {
            "kind": "mixed_coupling",
            "parts": [{"kind": "shared_coupling"}, {"kind": "independent_coupling"}],
            "odds": [0.5, 0.5],
        },
    },
    "weights": {
        "none": None,
        **{name: {"kind": name} for name in ("fixed_weights", "token_weights", "uncertainty_weights")},
    },
    "meet": {"none": None, **{name: {"kind": name} for name in ("apart", "cross_attention", "joint_attention")}},
}
NAMED = {key: tuple(name for name in names if name != "none") for key, names in CHOICES.items()}
TO_NOTHING = ("linear", "cosine", "zero_terminal")  # processes that leave no signal at t = 1

Rule = dict[str, tuple[str, ...]]  # key -> choices; a row that has one of them for every key is refused
REFUSED: list[tuple[Rule, str]] = [
    (
        {"target": ("eps",), "process": TO_NOTHING, "grid": ("uniform_grid", "shifted_grid", "karras_grid")},
        "first: 0.999",
    ),
    ({"net": BOTH, "loss": ("hybrid",)}, "needs channels, which a packed joint sample lacks"),
    ({"net": ALONE, "guidance": ("isolation",)}, "needs a system of two modalities"),
    ({"net": ("unet", "unet of sound", "joint_unet"), "guidance": ("autoguidance",)}, "cannot be skipped"),
    ({"net": ALONE, "coupling": NAMED["coupling"]}, "no key 'coupling'"),
    ({"net": ALONE, "weights": NAMED["weights"]}, "no key 'weights'"),
    ({"net": (*ALONE, "joint_unet"), "meet": NAMED["meet"]}, "no key 'meet'"),
]


# ---- rows ----------------------------------------------------------------------------------------------------------


def refused(row: Row) -> bool:
    return any(all(row.get(key) in names for key, names in rule.items()) for rule, _ in REFUSED)


def pairs(row: Row) -> set[tuple[Choice, Choice]]:
    return set(combinations(((key, row[key]) for key in CHOICES if key in row), 2))


def filled(row: Row, wanted: set[tuple[Choice, Choice]]) -> Row | None:
    """The row with a choice for every key, each the one that makes most of the pairs that are still wanted."""
    missing = [key for key in CHOICES if key not in row]
    if not missing:
        return row
    options = [{**row, missing[0]: name} for name in CHOICES[missing[0]]]
    allowed = [option for option in options if not refused(option)]
    found = (filled(option, wanted) for option in sorted(allowed, key=lambda o: -len(pairs(o) & wanted)))
    return next((whole for whole in found if whole is not None), None)


def cover() -> Iterator[Row]:
    """Rows that hold every pair of choices which is not refused."""
    every = combinations(((key, name) for key, names in CHOICES.items() for name in names), 2)
    wanted = {(one, other) for one, other in every if one[0] != other[0] and not refused(dict((one, other)))}
    while wanted:
        first = min(wanted)
        row = filled(dict(first), wanted)
        wanted -= {first} if row is None else pairs(row)  # None: what REFUSED says of other keys leaves no row for it
        if row is not None:
            yield row


ROWS = list(cover())


def tree(row: Mapping[str, str]) -> Tree:
    """A row as a config; keys that it lacks take their first choice."""
    chosen = {key: names[row.get(key, next(iter(names)))] for key, names in CHOICES.items()}
    net, codec, both = copy.deepcopy(chosen["net"]), chosen["codec"], row.get("net") in BOTH
    if row.get("loss") == "hybrid" and not both:
        net["channels"] *= 2  # it gives two answers
    denoiser = {"kind": "denoiser", "net": net, **{key: chosen[key] for key in ("process", "target", "draw", "loss")}}
    modality = "audio" if "sound" in row.get("net", "") else "video"
    system = (
        {"kind": "joint", **codec}
        if both
        else {"kind": "diffusion", "modality": modality, "autoencoder": codec[modality]}
    )
    more = {
        key: chosen[key] for key in ("conditioner", "grid", "tasks", "coupling", "weights") if chosen[key] is not None
    }
    if chosen["meet"] is not None:
        net["meet"] = chosen["meet"]
    system |= {"shape": {"kind": "clip_shape", **CLIP}, "denoiser": denoiser, **more}
    sample = {"steps": 3, "sampler": chosen["sampler"], "guidance": chosen["guidance"]}
    return {"system": system, "data": {"kind": "clips", "path": "data/x", **CLIP}, "sample": sample}


def clips() -> Batch:
    """Four clips of noise, one of them silent."""
    ids, here = ["a", "b", "c", "d"], torch.ones(4, dtype=torch.bool)
    video, audio = (
        noise.normal(shape, keys=noise.keys(0, "clips", 0, ids)).tanh() for shape in ((3, 4, 8, 8), (1, 128))
    )
    heard = torch.tensor([True, True, True, False])
    return Batch(
        video=video, audio=torch.where(heard[:, None, None], audio, 0.0), text=SAID * 2, id=ids, rate=256,
        fps=torch.full((4,), 8.0), valid={"video": here, "audio": heard},
    )  # fmt: skip


def walk(config: Tree) -> tuple[Diffusion, Batch]:
    """What the tools do with a config: check, build, fit, one step of training, a clip."""
    run = parse(config)
    system = make_system(run)
    for codec in system.autoencoders.values():
        if hasattr(codec, "adopt"):
            codec.adopt(codec.part.state_dict())
    batch = clips()
    system.fit([batch])
    loss, _ = system.loss(batch, seed=0, step=0)
    loss.backward()
    learned = list(system.players()["learner"].parameters())
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    torch.optim.SGD(learned, lr=1e-2).step()
    told = {key: getattr(run.sample, key) for key in ("steps", "sampler", "guidance")}
    return system, system.generate(Batch(text=SAID, id=["x", "y"]), seed=0, **told)


def name(row: Row) -> str:
    return "-".join(value for value in row.values() if value != "none")


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_row_learns_and_dreams(row: Row) -> None:
    system, made = walk(tree(row))
    for modality in system.autoencoders:
        clip = made[modality]  # type: ignore[literal-required]
        assert clip.shape[1:] == clips()[modality].shape[1:] and clip.isfinite().all()  # type: ignore[literal-required]


# ---- what does not go together -------------------------------------------------------------------------------------


def refused_rows() -> Iterator[tuple[Row, str]]:
    for rule, why in REFUSED:
        for names in product(*rule.values()):
            yield dict(zip(rule, names, strict=True)), why


@pytest.mark.parametrize(("row", "why"), list(refused_rows()), ids=str)
def test_a_row_that_is_refused_says_why(row: Row, why: str) -> None:
    with pytest.raises(UserError, match=why):
        walk(tree(row))


NET, SYSTEM = "system.denoiser.net", "system"
WRONG: list[tuple[str, Tree, str]] = [  # the net that is built otherwise, the keys that are wrong, what is said
    ("dit", {NET: NETS["joint_dit"]}, "JointDiT denoises video and audio, but the system makes video"),
    ("dit", {NET: NETS["joint_unet"]}, "JointUNet denoises video and audio, but the system makes video"),
    ("joint_dit", {NET: NETS["dit"]}, "DiT denoises video, but the system makes video and audio"),
    ("joint_unet", {NET: NETS["unet"]}, "UNet denoises video, but the system makes video and audio"),
    ("dit", {f"{NET}.modality": "audio"}, "DiT denoises audio, but the system makes video"),
    ("unet of sound", {f"{NET}.modality": "video"}, "UNet denoises video, but the system makes audio"),
    ("dit", {f"{SYSTEM}.modality": "smell"}, "system.modality is 'smell'"),
    ("dit", {NET: TEXT}, "system.denoiser.net is a text, but must be a part .* that makes a Network"),
    ("dit", {f"{NET}.channels": 5}, "channels: the network was built for 5, but the latent has 3"),
    ("unet", {f"{NET}.channels": 5}, "channels: the network was built for 5, but the latent has 3"),
    ("joint_dit", {f"{NET}.video.channels": 5}, "channels: the network was built for 5, but the latent has 3"),
    ("joint_unet", {f"{NET}.audio.channels": 5}, "channels: the network was built for 5, but the latent has 1"),
    ("dit", {f"{NET}.text_width": 12}, "text_width .* listens to 12 numbers .* gives 8"),
    ("joint_dit", {f"{NET}.text_width": 12}, "text_width .* listens to 12 numbers .* gives 8"),
    ("unet", {f"{NET}.text_width": 12}, "text_width: the network reads text of width 12, but its conditioner gives 8"),
    ("dit", {f"{NET}.text_width": 0}, "describes the clips but the network does not listen"),
    ("dit", {f"{SYSTEM}.conditioner": {"kind": "conditioners"}}, "but its conditioner gives none: set text_width: 0"),
    ("dit", {f"{NET}.patch": [1, 3, 3]}, "patch: .* does not divide a latent of .4, 8, 8."),
    ("dit", {f"{NET}.patch": [2, 2]}, "give three positive sizes"),
    ("dit", {f"{NET}.heads": 3}, "width 16 must divide into 3 heads"),
    ("unet", {f"{NET}.strides": [[1, 16, 16]]}, "strides: .* does not divide a latent of .4, 8, 8."),
    ("unet", {f"{NET}.groups": 0}, "must be a multiple of groups"),
    ("unet", {f"{NET}.attention": "plain"}, "plain attention reads no text"),
    ("dit", {f"{SYSTEM}.autoencoder": MEL}, "Mel codes clips of shape .1 n."),
    ("dit of sound", {f"{SYSTEM}.autoencoder": CODECS["fixed"]["video"]}, "PCA codes clips of shape .3 frames"),
    ("dit", {f"{SYSTEM}.autoencoder": HEARD}, "built for 1 channels"),
    ("joint_dit", {f"{SYSTEM}.audio": SEEN}, "built for 3 channels"),
    ("dit", {"system.denoiser.process": {"kind": "zero_terminal", "process": {"kind": "linear"}}}, "keep the variance"),
    ("dit", {"system.denoiser.process": NETS["dit"]}, "process is a dit, but must be a part .* makes a Process"),
    ("dit", {"system.denoiser.loss": {"kind": "min_snr"}}, "loss is a min_snr, but must be a part .* makes a Loss"),
    (
        "dit",
        {"system.denoiser.loss": {"kind": "hybrid"}},
        "channels: the network was built for 3, but the latent has 6",
    ),
    ("dit", {"system.denoiser.target": "velocity"}, "choose one of x0, eps, flow, v"),
    ("dit", {"system.denoiser.draw": {"kind": "shifted", "draw": {"kind": "loss_aware"}}}, "make it the draw itself"),
    ("dit", {"system.denoiser.draw": {"kind": "log_normal", "process": {"kind": "linear"}}}, "makes an EDM"),
    ("dit", {"system.grid": {"kind": "karras_grid", "process": {"kind": "linear"}}}, "makes an EDM"),
    ("dit", {"system.grid": UNIFORM}, "system.grid is a uniform, but must be Callable"),
    ("dit", {"system.tasks": {"video_to_audio": 1.0}}, "video_to_audio needs audio"),
    (
        "joint_dit",
        {"system.coupling": {"kind": "shifted_coupling", "factors": {"vidoe": 2.0}}},
        "coupling.factors names",
    ),
    (
        "joint_dit",
        {"system.weights": {"kind": "fixed_weights", "factors": {"vidoe": 2.0}}},
        "weights.factors names vidoe",
    ),
    ("joint_dit", {f"{NET}.share": ["blocks"], f"{NET}.audio.width": 32}, "blocks needs branches of one width"),
    ("joint_dit", {"sample.guidance": {"kind": "cfg", "scale": {"video": 2.0}}}, "has to name video, audio"),
    ("dit", {"sample.guidance": {"kind": "shallow", "skip": [1]}}, "there is no 'shallow'"),
    ("dit", {"sample.sampler": "eulr"}, "did you mean 'euler'"),
    ("dit", {"sample.sampler": {"kind": "restart", "low": 0.6}}, "restart: low 0.6 and high 0.4 must lie in order"),
    ("dit", {"sample.sampler": {"kind": "unipc", "order": 0}}, "unipc: order is 0"),
]


@pytest.mark.parametrize(("net", "keys", "why"), WRONG, ids=str)
def test_a_key_that_does_not_fit_says_why(net: str, keys: Tree, why: str) -> None:
    config = tree({"net": net})
    for path, value in keys.items():
        config = overlaid(config, path.split("."), value)
    with pytest.raises(UserError, match=why):
        walk(config)


def test_a_network_that_names_no_modality_is_told_so() -> None:
    """What a config cannot do any more, Python still can."""
    system = make_system(parse(tree({"net": "dit"})))
    system.denoiser.net = torch.nn.Identity()
    with pytest.raises(UserError, match="Identity denoises nothing, but the system makes video"):
        fitting.check(system)


def overlaid(node: Tree, path: list[str], value: Any) -> Tree:
    first, *rest = path
    return {**node, first: overlaid(node[first], rest, value) if rest else copy.deepcopy(value)}


# ---- nothing is left out -------------------------------------------------------------------------------------------

ELSEWHERE = """clips clip_shape buckets bucketed packed autoencoding naming patch_discriminator tower perceptual hf_text
trained style frame frame_tokens""".split()  # data, other systems, what needs files or a network of its own


def test_every_part_has_a_place() -> None:
    """A new part belongs into CHOICES, with its pairs, or into the list above, with a test of its own."""
    used = {node["kind"] for row in ROWS for node in nodes(tree(row))} | set(ELSEWHERE)
    assert used == set(PARTS), f"give {sorted(set(PARTS) ^ used)} a place"
    assert set(CHOICES["guidance"]) >= set(GUIDES) and set(CHOICES["sampler"]) == set(SAMPLERS)


def nodes(tree: Any) -> Iterator[Tree]:
    if isinstance(tree, dict) and "kind" in tree:
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []:
        yield from nodes(child)
