"""Files that mmdiff wrote and reads again: whatever they hold by now, they are read, or a UserError names them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mmdiff.data.latents import Latents, transform
from mmdiff.data.manifest import Entry, read_entries
from mmdiff.data.media import BadMedia
from mmdiff.data.shards import KEY, Shard, digest, sha256, written
from mmdiff.data.window import Policy
from mmdiff.encode import ledger
from mmdiff.errors import UserError
from mmdiff.evaluate.folder import caption
from mmdiff.leaderboard import collect, document
from mmdiff.report import gallery
from mmdiff.report.learning import read_log
from mmdiff.train import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))
import fakes

FUZZ = settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
DEEP = "[" * 100_000  # deeper than any parser goes
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("../../x")
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=4), t, max_size=3))
TEXTS = st.just(DEEP) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")) | TREES.map(json.dumps)


def answers(read: Any) -> None:
    try:
        read()
    except UserError as error:
        assert str(error)


def places(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [here, *(place for key in keys for place in places(tree[key], (*here, key)))]


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy in which something else stands at a place, or nothing where the value is ABSENT."""
    if not place:
        return {} if value is ABSENT else value
    copy = json.loads(json.dumps(tree))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if value is ABSENT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copy


ABSENT = object()


def damaged(tree: Any) -> st.SearchStrategy[Any]:
    """A tree with one place of it changed or gone."""
    return st.builds(changed, st.just(tree), st.sampled_from(places(tree)), st.just(ABSENT) | TREES)


# ---- latents -------------------------------------------------------------------------------------------------------

POLICY = Policy(4, 8.0, (16, 16), 8000, window="start", crop="center")
PLAN = {"codecs": {"video": "x"}, "texts": {"t": "y"}, "frame": True, "sets": {"train": transform(POLICY, 0)}}
ROWS = [
    {"id": "a", "captions": ["red"], "valid": {"video": True}, "motion": 0.5},
    {"id": "b", "captions": [], "bad": "x"},
]
TENSORS = {"0.video": torch.ones(1), "text.0.0": torch.zeros(1), "text.0.1": torch.ones(1), "0.frame": torch.ones(3)}
HEADER = {
    "sources": [],
    "rows": ROWS,
    "texts": ["", "red"],
    "digests": {name: digest(t) for name, t in TENSORS.items()},
}
INDEX = {"plan": "", "shards": [["s.safetensors", ""]], "rows": ROWS, "views": 1, "step": 2}


def encoded(folder: Path, plan: str, header: str, index: Any) -> None:
    """Write a folder of latents as the encoder would have named it."""
    (folder / "train").mkdir(exist_ok=True)
    (folder / "plan.json").write_text(plan)
    save_file(TENSORS, folder / "train" / "s.safetensors", metadata={KEY: header})
    if isinstance(index, dict) and index.get("plan") == "":
        index = index | {"plan": sha256(plan)}
        if index.get("shards") == INDEX["shards"]:
            index["shards"] = [["s.safetensors", sha256(header)]]
    text = index if isinstance(index, str) else json.dumps(index)
    for old in (folder / "train").glob("index-*"):
        old.unlink()
    (folder / "train" / f"index-{sha256(text)[:16]}.json").write_text(text)


def learn(folder: Path) -> None:
    """What training reads."""
    stored = Latents(folder, "train", POLICY, 0)
    for entry in stored.entries:
        for text in ("", *entry.captions):
            try:
                stored.read(entry.id, 3, text)
            except BadMedia:
                pass


@FUZZ
@given(index=damaged(INDEX) | TEXTS)
@example(index=INDEX | {"step": 0})
@example(index=INDEX | {"views": 7})
@example(index=INDEX | {"shards": []})
@example(index=INDEX | {"shards": [["../../s.safetensors", "x"]]})
def test_the_index_of_latents(index: Any, tmp_path: Path) -> None:
    encoded(tmp_path, written(PLAN), written(HEADER), index)
    answers(lambda: learn(tmp_path))


def test_a_whole_folder_of_latents_is_read(tmp_path: Path) -> None:
    """What the others damage is sound."""
    encoded(tmp_path, written(PLAN), written(HEADER), INDEX)
    stored = Latents(tmp_path, "train", POLICY, 0)
    assert torch.equal(stored.read("a", 0, "red")[0].latents["video"], torch.ones(1))


@FUZZ
@given(plan=damaged(PLAN).map(json.dumps) | TEXTS)
def test_the_plan_of_latents(plan: str, tmp_path: Path) -> None:
    encoded(tmp_path, plan, written(HEADER), INDEX)
    answers(lambda: learn(tmp_path))


@FUZZ
@given(header=damaged(HEADER).map(json.dumps) | TEXTS)
def test_headers_of_shards(header: str, tmp_path: Path) -> None:
    encoded(tmp_path, written(PLAN), header, INDEX)
    answers(lambda: learn(tmp_path))
    answers(
        lambda: [
            row["id"] for name in ("rows", "sources") for row in Shard(tmp_path / "train/s.safetensors").header[name]
        ]
    )


@FUZZ
@given(text=damaged({"host": "h", "pid": 1}).map(json.dumps) | TEXTS)
def test_claims(text: str, tmp_path: Path) -> None:
    """A claim that says nothing is somebody's until it has been silent for long."""
    (tmp_path / "00000.claim").write_text(text, encoding="utf-8")
    with ledger.claimed(tmp_path / "00000") as ours:
        assert ours in (True, False)


# ---- clips and results ---------------------------------------------------------------------------------------------

SIDE = {
    "prompt": "a ball", "run": "r", "file": "0000-a.png", "frames": 1, "size": [4, 4], "fps": 8.0, "samples": 0,
    "rate": 8000, "checkpoint": {"step": 3, "hash": "x"},
}  # fmt: skip


@FUZZ
@given(text=damaged(SIDE).map(json.dumps) | TEXTS)
@example(text=json.dumps(SIDE | {"file": "/etc/passwd"}))
@example(text=json.dumps(SIDE | {"file": "0000-a.mp4", "fps": 0.0}))
@example(text=json.dumps(SIDE | {"file": "0000-a.mp4", "frames": 10**15}))
@example(text=json.dumps(SIDE | {"file": "0000-a.wav", "frames": 0, "samples": 5, "rate": 0}))
def test_side_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "0000-a.json").write_text(text, encoding="utf-8")

    def shown() -> None:
        for path, side in gallery.read(tmp_path).clips.values():
            assert path.parent == tmp_path
            gallery.load(path, side)

    answers(shown)
    answers(lambda: caption(Entry("x", tmp_path / "0000-a.mp4", None)))


ENTRY = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
RESULT = {
    "protocol": {"checkpoint": {"step": 3, "hash": "x"}, "prompts_hash": "a", "preprocessing_hash": "b", "n": 3,
                 "split": "iid", "modalities": ["video"], "device": "cpu", "seeds": [1]},
    "rows": {"model": {"facts": ENTRY}},
    "per_clip": {"prompts": ["a"], "ids": ["b"], "values": {"facts": [1.0]}},
}  # fmt: skip
COST = {"checkpoint": RESULT["protocol"]["checkpoint"], "parameters": 5, "flops": 70, "sampling": 0.5}


def finished(run: Path, evaluation: str, cost: str, log: str, done: str) -> None:
    run.mkdir(exist_ok=True)
    files = {"evaluation.json": evaluation, "cost.json": cost, "log.jsonl": log, "DONE": done, "config.yaml": "{}"}
    for name, text in files.items():
        (run / name).write_text(text, encoding="utf-8")


@FUZZ
@given(evaluation=damaged(RESULT).map(json.dumps) | TEXTS)
def test_results(evaluation: str, tmp_path: Path) -> None:
    finished(tmp_path / "one", evaluation, json.dumps(COST), "", "10")
    answers(lambda: document(collect(tmp_path), command="x"))


@FUZZ
@given(cost=damaged(COST).map(json.dumps) | TEXTS, log=TEXTS, done=st.text(max_size=5))
def test_costs_and_logs(cost: str, log: str, done: str, tmp_path: Path) -> None:
    finished(tmp_path / "one", json.dumps(RESULT), cost, log, done)
    answers(lambda: document(collect(tmp_path), command="x"))


@FUZZ
@given(rows=st.lists(TEXTS | damaged({"step": 3, "step_s": 0.1}).map(json.dumps), max_size=4))
def test_logs(rows: list[str], tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert all(isinstance(row["step"], int | float) for row in read_log(tmp_path))


# ---- checkpoints and archives --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fakes.train(fakes.Run(str(folder), steps=2, every=fakes.Every(log=0, save=2)))
    return folder


@FUZZ
@given(data=st.data())
def test_a_manifest_without_a_seal(data: st.DataObject, run: Path) -> None:
    """Older checkpoints have none: what is called sound can be gone on from."""
    path = run / "checkpoints" / "step-00000002"
    if not hasattr(test_a_manifest_without_a_seal, "whole"):
        test_a_manifest_without_a_seal.whole = json.loads((path / "manifest.json").read_text())  # type: ignore[attr-defined]
    whole = test_a_manifest_without_a_seal.whole  # type: ignore[attr-defined]
    unsealed = {key: value for key, value in whole.items() if key != "sha256"}
    text = data.draw(damaged(unsealed).map(json.dumps) | TEXTS)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    if checkpoint.verify(path) is None:
        manifest = checkpoint.read_manifest(path)
        recent = manifest.get("notes", {}).get("recent", [])
        assert int(manifest["step"]) >= 0 and all(int(n) >= 0 for n in manifest["updates"].values())
        assert all(isinstance(loss, float) for loss in recent)


def tar(names: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            file.addfile(member)
    return out.getvalue()


WHOLE = tar(["a.mp4", "a.json", "folder/", "b" * 120 + ".mp4"])


def sealed(head: bytearray) -> bytes:
    """A header with the checksum that belongs to it."""
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@FUZZ
@given(block=st.integers(0, 5), at=st.integers(0, 511), data=st.binary(min_size=1, max_size=24), seal=st.booleans())
@example(block=2, at=124, data=b"\x80" + b"\xff" * 11, seal=True)
@example(block=0, at=124, data=b"\x80" + b"\xff" * 11, seal=True)
@example(block=0, at=156, data=b"x", seal=True)
def test_archives(block: int, at: int, data: bytes, seal: bool, tmp_path: Path) -> None:
    made = bytearray(WHOLE)
    first = block * tarfile.BLOCKSIZE
    made[first + at : first + min(512, at + len(data))] = data[: 512 - at]
    if seal:
        made[first : first + 512] = sealed(made[first : first + 512])
    (tmp_path / "x.tar").write_bytes(made)
    answers(lambda: read_entries(tmp_path / "x.tar"))


@FUZZ
@given(data=st.binary(max_size=2000))
def test_archives_of_any_bytes(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    answers(lambda: read_entries(tmp_path / "x.tar"))
