"""Every recipe that we publish: it parses, its parts fit each other, and the run folder gives it back unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdiff import noise as draws
from mmdiff.ablate import question as questions
from mmdiff.batch import Batch, ClipShape
from mmdiff.build import Run, make_system, parse
from mmdiff.config import dump, read
from mmdiff.models.joint import JointDiT
from mmdiff.systems.autoencoding import Autoencoding
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.naming import Naming

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
QUESTION = set(questions.OWN) - {"base"}  # what makes a recipe a question, see mmdiff/ablate/question.py
OPEN = {"folder.yaml": ["data.path=clips"]}  # what a recipe leaves to its user
SMALL = [name for name in FILES if not name.startswith("full/")]  # test_full.py looks at the others without weights
each_file, each_small_file = (pytest.mark.parametrize("name", names) for names in (FILES, SMALL))


def recipe(name: str) -> tuple[Run, dict[str, Any]]:
    """A recipe and what an ablation varies in it ({} otherwise)."""
    tree = read(CONFIGS / name, OPEN.get(name, []))
    vary = tree.get("vary", {})
    return parse({key: value for key, value in tree.items() if key not in QUESTION}), vary


def noise(shape: ClipShape, seed: int) -> Batch:
    """Clips without sense, 8 of them: enough for statistics."""
    keys = draws.keys(seed, "clips", 0, "abcdefgh")
    video = draws.normal((3, shape.frames, *shape.size), keys=keys).tanh()
    audio = draws.normal((1, shape.samples), keys=keys).tanh()
    valid = {"video": torch.ones(8, dtype=torch.bool), "audio": torch.ones(8, dtype=torch.bool)}
    return Batch(video=video, audio=audio, valid=valid, text=list("abcdefgh"), id=list("abcdefgh"))


def test_there_are_recipes() -> None:
    assert {"folder.yaml", "sounding_objects/smoke.yaml", "sounding_objects/joint.yaml"} <= set(FILES)


@each_small_file
def test_its_system_builds(name: str) -> None:
    run, _ = recipe(name)
    system = make_system(run)
    assert isinstance(system, Diffusion | Autoencoding | Naming) and isinstance(system.shape, ClipShape)
    clip = (run.data["frames"], run.data["fps"], list(run.data["size"]), run.data["rate"])
    assert clip == (system.shape.frames, system.shape.fps, list(system.shape.size), system.shape.rate)
    if not isinstance(system, Diffusion):
        return
    shapes = system.latent_shapes()
    net = getattr(system.denoiser.net, "net", system.denoiser.net)
    if isinstance(net, JointDiT):
        for key, branch in net.branches.items():
            assert shapes[key][0] == branch.channels, f"{key}: latents of {shapes[key]}"


@each_small_file
def test_its_system_steps(name: str) -> None:
    """One evaluation of the network on a latent of its own shape: patches, windows and widths of text fit."""
    run, _ = recipe(name)
    system = make_system(run)
    if not isinstance(system, Diffusion):
        system.fit([noise(system.shape, seed) for seed in range(2)])
        loss, _ = system.loss(noise(system.shape, 2), seed=0, step=run.steps)
        assert loss.isfinite()
        return
    asked = system.blank({"text": ["a red ball falls"], "id": ["0"]})
    with torch.no_grad():
        y = system.denoise(asked)(torch.zeros(1, *system.latent_shape()), torch.ones(1))
    assert y.shape[1:] == system.latent_shape() and y.isfinite().all()


@each_file
def test_what_an_ablation_varies_is_a_key(name: str) -> None:
    if recipe(name)[1]:
        question = questions.read(CONFIGS / name)
        for arm in question.arms:
            make_system(parse(question.tree(arm)))


@each_file
def test_it_comes_back_from_the_run_folder(name: str, tmp_path: Path) -> None:
    tree = read(CONFIGS / name, OPEN.get(name, []))
    stored = tmp_path / "config.yaml"
    stored.write_text(dump(tree), encoding="utf-8")
    assert read(stored) == tree and not re.search(r"[&*]id\d", stored.read_text())


@each_file
def test_it_says_what_it_is(name: str) -> None:
    """The header of a recipe: what it is, and the exact command."""
    text = (CONFIGS / name).read_text(encoding="utf-8")
    header = "\n".join(re.findall(r"\A(?:#.*\n)+", text))
    assert len(header.split()) >= 5


def test_what_is_taken_from_another_run_is_built_as_there() -> None:
    trees = [read(CONFIGS / name, OPEN.get(name, [])) for name in FILES]
    runs = {tree["run"]: tree for tree in trees if "run" in tree}
    taken = [n for tree in trees for n in nodes(tree) if n.get("kind") == "pretrained" and n["run"] in runs]
    assert taken and all(n["part"] == runs[n["run"]]["system"]["autoencoder"] for n in taken)


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a config."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []:
        yield from nodes(child)
