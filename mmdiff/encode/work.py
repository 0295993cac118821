"""One shard: which sources it is made of, whether it is there already, and its bytes.

The one idea: a shard is called after the hash of its plan and of everything that it is made of, the bytes of its source
files among them. So a finished one is found by its name, a changed source gives another name beside the old one, and
nothing is ever written over. Its bytes are a function of its name: the same from any worker, at any time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmdiff.conditioners.numbers import motion
from mmdiff.data import tars
from mmdiff.data.clips import Clips, Sample
from mmdiff.data.loader import collate
from mmdiff.data.manifest import Entry
from mmdiff.data.media import BadMedia
from mmdiff.data.shards import KEY, Shard, digest, fault, sha256, written
from mmdiff.encode.job import Bench, Job, bench, half, plan_hash
from mmdiff.encode.ledger import claimed, publish
from mmdiff.systems.diffusion import clips

DIGITS = 16  # of a hash in a file's name
Row = dict[str, Any]


@dataclass(frozen=True)
class Visit:
    """What came of looking after a shard; `file` is empty where another process is at it."""

    split: str
    number: int
    file: str = ""
    made: bool = False
    stale: tuple[str, ...] = ()  # ids whose sources or captions were others in the shard that was there


def visit(job: Job, split: str, number: int) -> Visit:
    """See to it that a shard is there and sound, unless another process does."""
    made = bench(job)
    folder = job.folder / split
    with claimed(folder / f"{number:05d}") as ours:
        if not ours:
            return Visit(split, number)
        data = made.sets[split]
        entries = data.entries[number * job.shard_size : (number + 1) * job.shard_size]
        rows = [_source(entry) for entry in entries]
        path = folder / _name(job, number, rows)
        before = sorted(folder.glob(f"{number:05d}-*.safetensors"))
        if path.is_file() and _sound(path):
            return Visit(split, number, path.name)
        tensors, header = encoded(made, data, entries, rows)
        publish(path, lambda staged: save_file(tensors, staged, metadata={KEY: written(header)}))
        changed = _changed(before[-1], rows) if before and path not in before else ()
        return Visit(split, number, path.name, made=True, stale=changed)


def present(job: Job, split: str, number: int) -> str | None:
    """The file of a shard that others look after, None while there is none."""
    data = bench(job).sets[split]
    entries = data.entries[number * job.shard_size : (number + 1) * job.shard_size]
    found = sorted((job.folder / split).glob(f"{number:05d}-*.safetensors"))
    if len(found) == 1 and [row["id"] for row in Shard(found[0]).header["sources"]] == [entry.id for entry in entries]:
        return found[0].name
    name = _name(job, number, [_source(entry) for entry in entries]) if found else ""
    return name if name in [path.name for path in found] else None


# ---- what it is made of --------------------------------------------------------------------------------------------


def _source(entry: Entry) -> Row:
    """What of an entry decides the bytes of its rows."""
    files = {"video": entry.video, "audio": entry.audio}
    hashes = {name: _file_hash(path) for name, path in files.items() if path is not None}
    about = {"id": entry.id, "captions": list(entry.captions), "start": entry.start, "duration": entry.duration}
    return {**about, "files": hashes}


def _file_hash(path: Path) -> str:
    whole = hashlib.sha256()
    try:
        with tars.stream(path) as file:
            while part := file.read(1 << 20):
                whole.update(part)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return whole.hexdigest()


def _name(job: Job, number: int, rows: Sequence[Row]) -> str:
    return f"{number:05d}-{sha256(written([plan_hash(job), rows]))[:DIGITS]}.safetensors"


def _sound(path: Path) -> bool:
    """Whether a finished shard can be believed; one that cannot is set aside, loudly."""
    found = fault(path)
    if found is not None:
        aside, n = path.with_suffix(".corrupt"), 1
        while aside.exists():
            aside, n = path.with_suffix(f".corrupt-{n}"), n + 1
        os.replace(path, aside)
        print(f"{found} It is now {aside.name}.", file=sys.stderr, flush=True)
    return found is None


def _changed(old: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    """Ids of rows that are not as they were in a shard; all of them where it tells nothing."""
    before = Shard(old).header.get("sources", []) if fault(old) is None else []
    return tuple(row["id"] for row in rows if row not in before)


# ---- its bytes -----------------------------------------------------------------------------------------------------


def encoded(made: Bench, data: Clips, entries: Sequence[Entry], sources: list[Row]) -> tuple[dict[str, Tensor], Row]:
    """Entries -> tensors by name, and the header: `views` rows an entry."""
    rows: list[Row] = [{"id": e.id, "captions": list(e.captions)} for e in entries for _ in range(made.job.views)]
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[int, Sample]] = []
    for k, (entry, view) in enumerate((e, view) for e in entries for view in range(made.job.views)):
        try:
            waiting.append((k, data.read(entry, view)))
        except BadMedia as error:
            rows[k]["bad"] = str(error)
        if len(waiting) == made.job.batch:
            tensors |= _together(made, waiting, rows)
            waiting = []
    tensors |= _together(made, waiting, rows)
    texts = sorted({""} | {text for entry in entries for text in entry.captions})
    tensors |= dict(_said(made, texts))
    digests = {name: digest(tensor) for name, tensor in tensors.items()}
    texts = texts if made.coders.voices else []
    return tensors, {"sources": sources, "rows": rows, "texts": texts, "digests": digests}


@torch.no_grad()
def _together(made: Bench, waiting: list[tuple[int, Sample]], rows: list[Row]) -> dict[str, Tensor]:
    """The tensors of clips that are encoded as one batch; `rows` learn what else is known of them."""
    if not waiting:
        return {}
    places, samples = zip(*waiting, strict=True)
    batch, tensors = collate(samples), {}
    for name, codec in made.coders.codecs.items():
        z: Tensor = codec.encode(clips(batch, name).to(made.job.device))
        for k, sample, latent in zip(places, samples, z, strict=True):
            tensors[f"{k}.{name}"] = half(latent, made.job.dtype, f"{sample['id']}: {name}").contiguous()
    speeds = motion(batch["video"], batch["fps"]).tolist() if "video" in batch else [None] * len(places)
    for k, sample, speed in zip(places, samples, speeds, strict=True):
        rows[k] |= {"valid": sample["valid"]} | ({} if speed is None else {"motion": speed})
        if made.coders.shown:
            tensors[f"{k}.frame"] = sample["video"][:, 0].contiguous()  # (3 h w)
    return tensors


def _said(made: Bench, texts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """What every frozen text encoder says of captions, in the order of the plan."""
    for i, voice in enumerate(sorted(made.coders.voices)):
        for k, text in enumerate(texts):
            yield f"text.{i}.{k}", made.coders.voices[voice].say(text).contiguous()
