"""Whatever a file of metadata holds, its reader answers, or says in one UserError what is wrong, in bounded time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdiff import build, config
from mmdiff.data.manifest import read_entries
from mmdiff.errors import UserError
from mmdiff.train import checkpoint, zero

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))
import fakes

FUZZ = settings(max_examples=80, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = "id video audio captions split start duration path kind base run steps data system net step files".split()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a.mp4"])
KEYS = st.sampled_from(WORDS) | st.text(max_size=6)
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=4) | st.dictionaries(KEYS, t, max_size=5), max_leaves=12)


def answers(read: Any) -> None:
    try:
        read()
    except UserError as error:
        assert str(error)


@FUZZ
@given(rows=st.lists(TREES | st.dictionaries(st.sampled_from(WORDS), SCALARS, min_size=1), max_size=4))
def test_manifests(rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    answers(lambda: read_entries(tmp_path / "m.jsonl", "train"))


@FUZZ
@given(data=st.binary(max_size=200) | st.text('ab,"\n\r video.mp4[]{}:\0', max_size=120).map(str.encode))
def test_manifests_of_any_bytes(data: bytes, tmp_path: Path) -> None:
    for name in ("m.jsonl", "m.csv"):
        (tmp_path / name).write_bytes(b"video,id\n" * (name == "m.csv") + data)
        answers(lambda name=name: read_entries(tmp_path / name))


@FUZZ
@given(tree=st.dictionaries(KEYS, TREES, max_size=6))
def test_configs(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(json.dumps(tree))
    answers(lambda: build.parse(config.read(tmp_path / "x.yaml")))


@FUZZ
@given(data=st.binary(max_size=120) | st.text("ab:-[]{}&*!|>'\"#%?,.$ \n\t~", max_size=120).map(str.encode))
def test_configs_of_any_bytes(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(data)
    answers(lambda: config.read(tmp_path / "x.yaml"))


@FUZZ
@given(change=st.dictionaries(st.sampled_from(["step", "files", "updates", "kinds", "sha256"]), TREES, min_size=1))
def test_manifests_of_checkpoints(change: dict[str, Any], tmp_path: Path) -> None:
    """A manifest is sound or its fault is said; nothing is raised."""
    path = tmp_path / "step-00000001"
    path.mkdir(exist_ok=True)
    whole = {"step": 1, "updates": {"learner": 1}, "kinds": [], "files": {"model.safetensors": {}}}
    (path / "manifest.json").write_text(json.dumps(whole | change))
    assert checkpoint.verify(path)


@FUZZ
@given(tree=TREES | st.dictionaries(st.sampled_from(["zero_optimization", "bf16", "train_batch_size"]), TREES))
def test_deepspeed_files(tree: Any, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(tree))
    run = fakes.Run("r", engine=replace(fakes.Engine(), config=str(tmp_path / "ds.json")))
    answers(lambda: zero.configure(run, world=2))
