"""Clips that were encoded before: what a data set reads where its recipe names a folder of tools/encode.py.

The one idea: nothing but the reading changes. Order, replacements, captions and shapes are those of the files, and by
what the latents were made is written beside them, so that a recipe or a system that does not fit is refused by name.

    FOLDER/plan.json                        by what they were made: transform, weights, version of the code
    FOLDER/codecs.safetensors               weights and statistics of the autoencoders that made them
    FOLDER/SPLIT/index-KEY.json             the clips and the shards they are in
    FOLDER/SPLIT/00000-KEY.safetensors      "ROW.video", "ROW.audio", "ROW.frame"; "text.ENCODER.K" of captions
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmdiff.batch import Batch, ClipShape
from mmdiff.data.manifest import Entry
from mmdiff.data.media import BadMedia
from mmdiff.data.shards import ROWS, content, opened, read_json, sha256, written
from mmdiff.data.window import Policy
from mmdiff.errors import UserError

PLAN, CODECS = "plan.json", "codecs.safetensors"
SETTLED = {"codecs": {str: str}, "texts": {str: str}, "frame": bool, "sets": {str: {}}}  # what a plan says
AGAIN = "Run tools/encode.py again."
INDEX = {"plan": str, "shards": [[str]], "rows": ROWS, "views": int, "step": int}


@dataclass(frozen=True)
class Encoded:
    """One clip in latent space."""

    latents: dict[str, Tensor]  # modality -> (c ...)
    embedded: dict[str, dict[str, Tensor]]  # text encoder -> caption -> (l e), of the clip's caption and the empty one
    motion: float | None  # picture widths a second, where there are pictures
    frame: Tensor | None  # uint8 (3 h w), the first one, where the encoding kept it
    shape: ClipShape


class Latents:
    """The clips of one split in a folder, for the recipe `policy` and its seed. Raises UserError if they do not fit."""

    def __init__(self, folder: str | Path, split: str | None, policy: Policy, seed: int) -> None:
        self.folder, self.split = Path(folder), split or "all"
        path = self.folder / PLAN
        if not path.is_file():
            raise UserError(f"data.latents: {folder} holds no {PLAN}. Make it with tools/encode.py --out {folder}.")
        self.plan = read_json(path, SETTLED)
        self._match(transform(policy, seed))
        index = read_json(self._index(), INDEX, named=True)
        if index["plan"] != sha256(path.read_text(encoding="utf-8")):
            raise UserError(f"{path} is not the plan that {self.split} was encoded by. {AGAIN}")
        self.shards, self.rows, self.views, self.step = index["shards"], index["rows"], index["views"], index["step"]
        if not self._complete():
            raise UserError(f"{self._index()} is damaged: its rows are not those of its shards. {AGAIN}")
        firsts = self.rows[:: self.views]
        self.entries = [Entry(row["id"], None, None, tuple(row["captions"])) for row in firsts]
        self._places = {entry.id: place for place, entry in enumerate(self.entries)}
        self.shape = ClipShape(policy.frames, policy.fps, policy.size, policy.rate)

    def read(self, name: str, epoch: int, text: str) -> tuple[Encoded, dict[str, bool]]:
        """A clip as it is in an epoch, and which modalities it has. Raises BadMedia if it could not be encoded."""
        place = self._places[name] * self.views + epoch % self.views
        row, (number, k) = self.rows[place], divmod(place, self.step)
        if "bad" in row:
            raise BadMedia(str(row["bad"]))
        file, header = self.shards[number]
        shard = opened(self.folder / self.split / file, header)
        latents = {modality: shard[f"{k}.{modality}"] for modality in self.plan["codecs"]}
        embedded = {
            voice: {said: shard[f"text.{i}.{shard.texts.get(said, said)}"] for said in {text, ""}}
            for i, voice in enumerate(self.plan["texts"])
        }
        frame = shard[f"{k}.frame"] if self.plan["frame"] else None
        return Encoded(latents, embedded, row.get("motion"), frame, self.shape), row["valid"]

    def _complete(self) -> bool:
        """Whether every row has its place in a shard, and says what it holds."""
        whole = self.views > 0 and self.step > 0 and len(self.rows) % self.views == 0
        places = all(len(shard) == 2 and Path(shard[0]).name == shard[0] for shard in self.shards)
        said = all("bad" in row or isinstance(row.get("valid"), dict) for row in self.rows)
        return whole and places and said and len(self.rows) <= self.step * len(self.shards)

    # ---- does it fit -----------------------------------------------------------------------------------------------

    def lend(self, system: Any) -> None:
        """Give autoencoders that have no statistics yet the weights by which the latents were made."""
        codecs = getattr(system, "autoencoders", None)
        if codecs is not None and not all(getattr(codec, "fitted", True) for codec in codecs.values()):
            try:
                codecs.load_state_dict(load_file(self.folder / CODECS))
            except (RuntimeError, OSError) as error:
                said = " ".join(str(error).split())[:300]
                raise UserError(
                    f"data.latents: the autoencoders of {self.folder} are not built as here: {said}"
                ) from None

    def check(self, system: Any) -> None:
        """Raise UserError where latents or embeddings were made by other weights than those of the system."""
        codecs = getattr(system, "autoencoders", None)
        if codecs is None:
            raise UserError("data.latents: this system learns from clips; only diffusion learns from latents.")
        for name, codec in codecs.items():
            self._same(f"the autoencoder of {name}", self.plan["codecs"].get(name), fingerprint(codec))
        for part in system.modules():
            if hasattr(part, "voice"):
                self._same(part.voice, self.plan["texts"].get(part.voice), weights(part.encoder.model))
        if getattr(system, "shown", False) and not self.plan["frame"]:
            raise UserError(
                f"data.latents: the system is told first frames, which {self.folder} was not asked to keep."
            )

    def _same(self, what: str, made: str | None, own: str) -> None:
        if made != own:
            had = "holds nothing of" if made is None else "was made by other weights or settings of"
            raise UserError(
                f"data.latents: {self.folder} {had} {what} (there {str(made)[:12]}, here {own[:12]}). Encode with this "
                "config or run into another folder, or train with the config that tools/encode.py was given."
            )

    def _match(self, own: dict[str, Any]) -> None:
        made = self.plan["sets"].get(self.split)
        if made is None:
            known = ", ".join(self.plan["sets"])
            raise UserError(f"data.latents: {self.folder} holds no split '{self.split}'; it holds {known}.")
        for name in own:
            if own[name] != made.get(name):
                raise UserError(
                    f"data.{name} is {own[name]}, but {self.folder} was encoded with {made.get(name)}. Give that "
                    "value, or encode into another folder."
                )

    def _index(self) -> Path:
        found = sorted((self.folder / self.split).glob("index-*.json"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"{self.folder / self.split} holds {len(found)} indices, since its sources changed: {names}. Delete "
                "those that are not to be used; the shards of what is kept are named in it."
            )
        raise UserError(f"{self.folder / self.split} is not finished: run the command of tools/encode.py again.")


def transform(policy: Policy, seed: int) -> dict[str, Any]:
    """What of a recipe decides about a clip's numbers, as JSON has it."""
    drawn = "random" in (policy.window, policy.crop)
    values = {**asdict(policy), "seed": seed if drawn else None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's weights and of the numbers that its parts were built with; names of files are left out."""
    return sha256(weights(module) + written([_numbers(vars(part)) for part in module.modules()]))


def weights(module: nn.Module) -> str:
    """SHA-256 of what a module would save."""
    whole = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(content(tensor))
    return whole.hexdigest()


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The public numbers, and lists of them, among an object's attributes."""
    public = {name: value for name, value in values.items() if not name.startswith("_") and name != "training"}
    return {name: _plain(value) for name, value in public.items() if _plain(value) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return float(f"{value:.6g}")  # what was computed may differ in its last digits from machine to machine
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _numbers({f.name: getattr(value, f.name) for f in fields(value)})
    return None


def collated(clips: Sequence[Encoded], valid: Mapping[str, Tensor]) -> Batch:
    """What a batch has of encoded clips, in the place of their pictures and samples."""
    first = clips[0]
    batch = Batch(
        latents={name: torch.stack([clip.latents[name] for clip in clips]).float() for name in first.latents},
        embedded={voice: {k: v for clip in clips for k, v in clip.embedded[voice].items()} for voice in first.embedded},
        encoded=first.shape,
    )
    if first.motion is not None:
        batch["motion"] = torch.tensor([clip.motion for clip in clips])
    if first.frame is not None:
        frames = torch.stack([clip.frame for clip in clips if clip.frame is not None])
        batch["frame"] = frames.float().div_(127.5).sub_(1) * valid["video"].view(-1, 1, 1, 1)  # (b 3 h w)
    return batch
