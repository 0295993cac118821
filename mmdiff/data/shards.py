"""Shards: safetensors files that say what is in them, read at random access and believed only by hash.

The one idea: whatever is read is compared with a hash that hangs on one name. An index is called after the hash of its
own text and holds the hash of every shard's header, and a header holds the hash of every tensor; so an index names the
same bytes for ever, and a bit that flipped has a name.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmdiff import records
from mmdiff.errors import UserError

KEY = "shard"  # of the only entry in a file's metadata: several are written in random order
OPEN = 64  # shards that a process keeps open
Header = dict[str, Any]
ROWS = [{"id": str, "captions": [str]}]
HEADER = {"digests": {str: str}, "texts": [str], "rows": ROWS, "sources": [{"id": str}]}


def sha256(text: str) -> str:
    """Of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(content(tensor)).hexdigest()


def content(tensor: Tensor) -> memoryview:
    """A tensor's bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def written(value: Any) -> str:
    """JSON that is the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Shard:
    """One open file. Raises UserError, at once or on reading a tensor, where it is not what the index says."""

    def __init__(self, path: Path, expected: str | None = None) -> None:
        self.path = path
        try:
            self.file = safe_open(path, framework="pt")
            self.text: str = (self.file.metadata() or {}).get(KEY, "")
            self.header: Header = records.parsed(self.text, HEADER)
        except (OSError, SafetensorError, ValueError) as error:
            raise self.damaged(f"it cannot be read ({str(error)[:200]})") from None
        self.digests: dict[str, str] = self.header["digests"]
        self.texts = {text: k for k, text in enumerate(self.header["texts"])}
        if expected is not None and sha256(self.text) != expected:
            raise self.damaged("its header does not have the hash that the index says")

    def __getitem__(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self.file.get_tensor(name)
        except SafetensorError as error:
            raise self.damaged(f"it does not hold {name} ({error})") from None
        if digest(tensor) != self.digests.get(name):
            raise self.damaged(f"{name} does not have the hash that it was written with")
        return tensor

    def damaged(self, fault: str) -> UserError:
        return UserError(
            f"The shard {self.path} is damaged: {fault}. Run the command of tools/encode.py that made it again: it "
            "sets the damaged file aside and makes the same one anew."
        )


@lru_cache(maxsize=OPEN)
def opened(path: Path, expected: str) -> Shard:
    """A shard that stays open in this process."""
    return Shard(path, expected)


def fault(path: Path) -> str | None:
    """What is wrong with a shard, None if every tensor has the hash that its header says."""
    try:
        shard = Shard(path)
        for name in shard.digests:
            shard[name]
    except UserError as error:
        return str(error)
    return None


def read_json(path: Path, shape: Any, *, named: bool = False) -> Any:
    """The value in a file; `named`: whose name ends in the beginning of the hash of its text. Raises UserError."""
    value = records.read(path, shape, again="Run tools/encode.py again.")
    if named and not sha256(path.read_text(encoding="utf-8")).startswith(path.stem.rpartition("-")[2]):
        raise UserError(f"{path} is damaged: it does not have the hash that is its name. Run tools/encode.py again.")
    return value
