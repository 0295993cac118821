"""Building: the constructor's signature is the schema, and every mistake is told before anything is built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from torch import nn

from mmdiff import build
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape
from mmdiff.build import check, make, make_system, parse
from mmdiff.config import dump, overlay, read
from mmdiff.errors import UserError
from mmdiff.kinds import find
from mmdiff.parts import PARTS
from mmdiff.process import EDM, Linear, Process
from mmdiff.sampling import karras

Tree = dict[str, Any]
NET = {"kind": "dit", "channels": 3, "width": 16, "depth": 1, "heads": 2, "patch": [1, 2, 2], "text_width": 8}
DENOISER = {
    "kind": "denoiser",
    "process": {"kind": "linear"},
    "target": "flow",
    "draw": {"kind": "uniform"},
    "net": NET,
}
TREE: Tree = {
    "steps": 30,
    "data": {"kind": "clips", "path": "data/x", "frames": 4, "fps": 8, "size": [4, 4], "rate": 32},
    "system": {
        "kind": "diffusion",
        "shape": {"kind": "clip_shape", "frames": 4, "fps": 8, "size": [4, 4], "rate": 32},
        "autoencoder": {"kind": "pixels"},
        "conditioner": {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 32},
        "denoiser": DENOISER,
    },
}


def changed(path: str, value: Any) -> Tree:
    """TREE with one key set; ... deletes it."""
    tree = copy.deepcopy(TREE)
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return tree


# ---- what is right -------------------------------------------------------------------------------------------------


def test_a_config_becomes_its_objects() -> None:
    run = parse(TREE)
    assert (run.steps, run.seed, run.batch, run.optimizer.lr) == (30, 0, 16, 1e-3)
    system = make_system(run)
    assert isinstance(system.autoencoders["video"], Pixels) and isinstance(system.denoiser.process, Linear)
    assert system.shape == ClipShape(frames=4, fps=8, size=[4, 4], rate=32)  # type: ignore[arg-type]
    assert len(system.denoiser.net.branch.blocks) == 1


def test_the_first_weights_are_a_function_of_the_seed() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.rand(3)
        before = torch.random.get_rng_state()
        weights.append(
            make_system(parse({**TREE, "seed": seed})).state_dict()["learner.denoiser.net.branch.embed.weight"]
        )
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_function_is_bound_and_not_called() -> None:
    node = {"kind": "karras_grid", "process": {"kind": "edm", "sigma_max": 50.0}}
    check(node, "grid")
    grid = make(node)
    assert isinstance(grid, partial) and torch.equal(grid(5), karras(5, process=EDM(sigma_max=50.0)))
    with pytest.raises(UserError, match="grid.process is missing: karras_grid needs it"):
        check({"kind": "karras_grid"}, "grid")
    with pytest.raises(UserError, match="'n'"):  # that is the caller's
        check({"kind": "uniform_grid", "n": 3}, "grid")


def test_the_grid_of_karras_in_yaml(tmp_path: Path) -> None:
    """Written once: the grid refers to the process of the denoiser."""
    tree = changed("system.denoiser.process", {"kind": "edm", "sigma_max": 20})
    tree["system"]["grid"] = {"kind": "karras_grid", "process": "${system.denoiser.process}"}
    tree["system"]["denoiser"]["target"] = "v"
    file = tmp_path / "edm.yaml"
    file.write_text(dump(tree))
    system = make_system(parse(build.read(file)))
    assert torch.equal(system.grid(4), karras(4, process=EDM(sigma_max=20)))
    assert system.generate(Batch(text=["a"]), seed=0, steps=3)["video"].isfinite().all()


def test_parts_of_the_table_exist() -> None:
    for kind in PARTS:
        assert callable(find(kind, "x")), kind


def test_a_list_of_parts() -> None:
    texts = [dict(TREE["system"]["conditioner"]) for _ in range(2)]
    tree = changed("system.conditioner", {"kind": "conditioners", "parts": texts})
    assert len(make_system(parse(tree)).learner["conditioner"].parts) == 2
    texts[1]["widht"] = 8
    with pytest.raises(UserError, match=r"system.conditioner.parts\[1\] .*'widht'; did you mean 'width'"):
        parse(tree)


# ---- what is wrong -------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, Any, str]] = [
    # names
    ("stesp", 5, "there is no key 'stesp'; did you mean 'steps'"),
    ("optimizer.learning_rate", 1.0, "optimizer: there is no key 'learning_rate'"),
    (
        "system.denoiser.net.detph",
        6,
        r"system.denoiser.net \(kind: dit\): there is no key 'detph'; did you mean 'depth'",
    ),
    ("system.kind", "diffusoin", "system.kind: there is no 'diffusoin'; did you mean 'diffusion'"),
    ("system.denoiser.process.kind", ["linear"], r"process.kind: there is no \['linear'\]"),
    ("system.denoiser.process", {"kind": "linear", "beta": 1}, "'beta'. The keys are none"),
    # completeness
    ("system", ..., "system is missing"),
    ("data", ..., "data is missing"),
    ("system.kind", ..., "system.kind is missing"),
    ("data.kind", ..., "data.kind is missing"),
    ("system.denoiser.net.channels", ..., "system.denoiser.net.channels is missing: dit needs it"),
    ("system.autoencoder", ..., "system.autoencoder is missing"),
    ("prepare", {"clips": 3}, "prepare.dataset is missing"),
    # types
    ("steps", "many", "steps is 'many' .str., but must be int"),
    ("steps", 3.5, "steps is '3.5' .float., but must be int"),
    ("steps", True, "steps is 'True' .bool., but must be int"),
    ("steps", None, "steps is 'None'"),
    ("run", 5, "run is '5' .int., but must be str"),
    ("data", 5, "data is '5'"),
    ("optimizer", [1], "optimizer is .* must be a part"),
    ("optimizer.lr", "fast", "optimizer.lr is 'fast' .str., but must be float"),
    ("optimizer.lr", False, "optimizer.lr is 'False'"),
    ("optimizer.betas", [0.9], "optimizer.betas"),
    ("optimizer.betas", [0.9, "x"], "optimizer.betas"),
    ("optimizer.kind", "sgd", "optimizer.kind is 'sgd' .*'adamw', 'muon'"),
    ("sample.prompts", "one", "sample.prompts"),
    ("sample.prompts", [1], "sample.prompts"),
    ("system.drop", "0.1", "system.drop is '0.1' .str., but must be float"),
    ("system.denoiser.net.patch", [1, 2, "2"], r"system.denoiser.net.patch is .* must be Sequence\[int\]"),
    ("system.denoiser.net.width", [16], "system.denoiser.net.width"),
    ("system.denoiser.net.width", {"kind": "linear"}, "system.denoiser.net.width is a linear, but must be int"),
    ("system.shape", {"frames": 4}, "system.shape is .* must be a part .* that makes a ClipShape"),
    ("system.denoiser.net", "dit", "system.denoiser.net is 'dit' .str.,.*makes a Network"),
    ("system.denoiser", {"kind": "pixels"}, "system.denoiser is a pixels, .*makes a Denoiser"),
    ("system.autoencoder", {"kind": "linear"}, "system.autoencoder is a linear, .*makes an Autoencoder"),
    ("system.grid", "uniform", "system.grid is 'uniform'"),
    ("system", {"kind": "pixels"}, "system is a pixels, .*makes a System"),
    # values that no type rules out
    ("batch", 0, "batch 0 must be a positive multiple"),
    ("accumulate", 3, "batch 16 must be a positive multiple of accumulate 3"),
    ("steps", -1, "not negative"),
]


@pytest.mark.parametrize(
    ("path", "value", "words"), WRONG, ids=[f"{path}={str(value)[:20]}" for path, value, _ in WRONG]
)
def test_mistakes_are_named_before_anything_is_built(path: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimizer.lr", 1),
        ("system.drop", 0),
        ("optimizer.betas", [0, 1]),
        ("system.shape.size", (4, 4)),
        ("held_out", {"split": "val"}),
        ("held_out", None),
        ("engine.config", None),
        ("engine.config", "x.json"),
        ("prepare", {"dataset": "sounding_objects"}),
    ],
)
def test_what_fits_is_taken(path: str, value: Any) -> None:
    parse(changed(path, value))


def test_a_wrong_key_of_the_held_out_data_is_its_own() -> None:
    with pytest.raises(UserError, match=r"held_out \(kind: clips\): there is no key 'spilt'; did you mean 'split'"):
        parse(changed("held_out", {"spilt": "val"}))


FITS: list[tuple[Any, Any, bool]] = [
    (1, float, True),
    (1.0, int, False),
    (True, int, False),
    (True, float, False),
    (1, bool, False),
    (True, bool, True),
    (None, int | None, True),
    ("x", int | None, False),
    ([1, 2], tuple[int, int], True),
    ([1, 2, 3], tuple[int, int], False),
    ([1, 2, 3], tuple[int, ...], True),
    ([1, 2.5], Sequence[int], False),
    ([1, 2.5], Sequence[float], True),
    ("ab", Sequence[str], False),
    ([["a"], []], list[list[str]], True),
    ({"a": 1}, dict[str, float], True),
    ({"a": "b"}, dict[str, float], False),
    ({"a": "b"}, dict[str, float] | None, False),
    ("x", Literal["x", 1], True),
    (True, Literal["x", 1], False),
    (3, Any, True),
    ({"kind": "edm"}, EDM, True),
    ({"kind": "linear"}, EDM, False),
    ({"kind": "linear"}, Process, True),
    ({"kind": "linear"}, Callable[[torch.Tensor], Any], True),
    ({"kind": "uniform_grid"}, Callable[[int], torch.Tensor], True),
    ({"kind": "uniform_grid"}, nn.Module, False),
    ({"kind": "clip_shape"}, Callable[[int], torch.Tensor], False),
    ([{"kind": "pixels"}], Sequence[nn.Module], True),
    ([{"kind": "linear"}], Sequence[nn.Module], False),
    ({}, nn.Module, False),
    (b"x", nn.Module, False),
]


@pytest.mark.parametrize(("value", "hint", "fits"), FITS, ids=str)
def test_types(value: Any, hint: Any, fits: bool) -> None:
    assert build._fits(value, hint) == fits


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "net", "process", "parts", "x"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@how(deadline=None)  # the first of them imports torch
@given(st.sampled_from(["system", "data", "optimizer", "held_out", "seed", "system.denoiser", "sample.prompts"]), JSON)
def test_whatever_is_written_is_taken_or_refused_in_words(path: str, value: Any) -> None:
    try:
        parse(changed(path, value))
    except UserError:
        pass


@given(st.sampled_from(list(PARTS)), st.dictionaries(st.sampled_from(["width", "path", "net", "parts"]), JSON))
def test_every_kind_refuses_in_words(kind: str, keys: Mapping[str, Any]) -> None:
    try:
        check({"kind": kind, **keys}, "x")
    except UserError:
        pass


def test_a_kind_replaced_on_the_command_line_leaves_no_key_behind() -> None:
    tree = overlay(
        TREE, {"system": {"denoiser": {"process": {"kind": "edm"}, "net": {"kind": "joint_dit", "depth": 2}}}}
    )
    assert tree["system"]["denoiser"]["net"] == {"kind": "joint_dit", "depth": 2}
    assert tree["system"]["denoiser"]["target"] == "flow"
    with pytest.raises(UserError, match="net.video is missing: joint_dit needs it"):
        parse(tree)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: it holds no config.yaml"):
        build.load(tmp_path)


SLOTS = {  # key of a system -> kinds that play its role, which other keys may still be missing for
    "joint": {
        "system.video": "pca",
        "system.audio": "mel",
        "system.conditioner": "text",
        "system.denoiser.net": "joint_dit",
    },
    "diffusion": {"system.autoencoder": "pixels", "system.conditioner": "text", "system.denoiser.net": "unet"},
}


@pytest.mark.parametrize("system", SLOTS)
def test_no_part_plays_the_role_of_another(system: str) -> None:
    """Every kind in every slot of a system: either it plays that role, or one paragraph refuses it."""
    file = "configs/sounding_objects/joint.yaml" if system == "joint" else "configs/lineage/ddpm.yaml"
    for slot, own in SLOTS[system].items():
        fitting = {own}
        for kind in PARTS:
            try:
                parse(read(file, [f"{slot}={{kind: {kind}}}"]))
                fitting.add(kind)
            except UserError as error:
                assert "\n\n" not in str(error)
        families = {kind: PARTS[kind].split(":")[0].split(".")[1] for kind in fitting}
        assert len(set(families.values())) == 1, (slot, families)


@pytest.mark.parametrize(
    ("slot", "node", "asked"),
    [
        ("conditioner", "{kind: pixels}", "Conditioner"),
        ("autoencoder", "{kind: text, width: 8}", "Autoencoder"),
        ("denoiser.net", "{kind: pixels}", "Network"),
        ("denoiser.net", "{kind: text, width: 8}", "Network"),
    ],
)
def test_the_role_that_is_asked_for_is_named(slot: str, node: str, asked: str) -> None:
    with pytest.raises(UserError, match=f"system.{slot} is a .*, but must be a part .* makes an? {asked}"):
        parse(read("configs/lineage/ddpm.yaml", [f"system.{slot}={node}"]))
