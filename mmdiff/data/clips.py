"""Entries to samples of one shape: which clip, which window, which crop, which caption.

The one idea: a sample is a pure function of (seed, position). Position p lies in epoch p // N, the epoch's permutation
names the clip, and the draws hang on (seed, purpose, epoch, clip id); so ranks, workers and resumed runs agree without
a word between them. A clip that cannot be used is replaced by the next in an order hashed from its own id, named once
with its reason and counted; whether it can be used hangs on file and window alone, never on what was read before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from torch import Tensor

from mmdiff import noise
from mmdiff.batch import ClipShape
from mmdiff.data.buckets import Buckets, Extent, spoken
from mmdiff.data.decoder import Decoder
from mmdiff.data.latents import Encoded, Latents
from mmdiff.data.manifest import Entry, read_entries
from mmdiff.data.media import BadMedia
from mmdiff.data.media.read import Reader
from mmdiff.data.plans import Budget, Epoch, Index, Line, Plan
from mmdiff.data.slow import Slow
from mmdiff.data.window import Draws, Modality, Policy, Reading
from mmdiff.errors import UserError
from mmdiff.progress import bar

CHECKED = 1000  # clips that may be unusable in a row before the folder is given up
READERS = 8  # threads that read headers
log = logging.getLogger(__name__)


class Content(TypedDict, total=False):
    """What was read of a clip: picture and sound, or what they were encoded to."""

    video: Tensor  # uint8 (3 t h w)
    audio: Tensor  # int16 (1 n), full scale 32767
    encoded: Encoded


class Sample(Content):
    """One clip; an absent modality is zeros and False in `valid`."""

    text: str
    id: str
    valid: dict[str, bool]
    fps: float
    rate: int
    skipped: list[tuple[str, str]]  # (id, reason) of the clips in whose place this one stands
    took: float  # s to decode it; 0 where nothing was


class Clips:
    """A map from positions to samples; `len` is the number of clips in an epoch, positions go on for ever.

    path        a folder or a manifest (see manifest.py)      split   one of the manifest's, or train / val
    frames, fps the window is frames / fps seconds            size    (h, w): scaled to cover, then cut
    rate        samples a second; n = round(frames / fps * rate)
    modalities  what is read; a clip that has none of them is unusable, one that lacks some is masked
    window      where the window lies: random in each epoch, at the start, or in the centre; crop likewise
    caption     random in each epoch, or the first; a clip without captions has the empty text
    short       a clip shorter than the window by more than half a frame: drop it (named with its length), loop it from
                its start, or hold its last frame over silence
    on_missing_audio   no sound in the window: mask (valid["audio"] is False), drop the clip, or stop with an error
    reader      pyav or decord, equal frames
    cache       keep decoded clips whose window and crop never change in this process's memory: (3 t h w) bytes and 2 n
                bytes a clip, in each loader worker again; the values are the same either way
    patience    seconds after which a decoder that does not answer is killed
    buckets     shapes in which training reads the clips instead (buckets.py); the shape above is then that of held-out
                clips, previews and whatever else asks for plain positions
    latents     a folder that tools/encode.py made of this recipe: clips are read from there, encoded, and `path` is not
                looked at. What the encoding drew (window, crop) stays as it was drawn; captions are drawn as ever

    An image is a still clip: its picture in every frame, no sound. A sound file alone is a clip without a picture.
    `bad` lists {id, reason} of the clips skipped so far, each once; `replaced` counts how often that happened, and
    `slow` knows which took far longer to decode than others.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frames: int,
        fps: float,
        size: Sequence[int],
        rate: int,
        split: str | None = "train",
        seed: int = 0,
        modalities: Sequence[Modality] = ("video", "audio"),
        window: Literal["random", "start", "center"] = "random",
        crop: Literal["random", "center"] = "random",
        caption: Literal["random", "first"] = "random",
        short: Literal["drop", "loop", "hold"] = "drop",
        on_missing_audio: Literal["mask", "drop", "error"] = "mask",
        reader: Reader = "pyav",
        cache: bool = False,
        patience: float = 60.0,
        buckets: Buckets | None = None,
        latents: str | None = None,
    ) -> None:
        extent = (int(size[0]), int(size[1])) if len(size) == 2 else (0, 0)
        self.policy = Policy(
            frames, float(fps), extent, rate, tuple(modalities), window, crop, short, on_missing_audio, reader
        )
        self.policy.check()
        if caption not in ("random", "first"):
            raise UserError(f"data.caption is random or first, not {caption!r}.")
        self.path, self.seed, self.caption, self.cache, self.buckets = path, seed, caption, cache, buckets
        if latents is not None and buckets is not None:
            raise UserError(
                "data.latents with data.buckets: tools/encode.py encodes every clip in one shape, data.frames at data.fps "
                "and data.size, so its folder holds no bucket to read from. Leave data.buckets out to train on that "
                "shape, or data.latents to train on the files in many."
            )
        self.stored = None if latents is None else Latents(latents, split, self.policy, seed)
        self.entries = read_entries(path, split) if self.stored is None else self.stored.entries
        self.bad: list[dict[str, str]] = []
        self.replaced, self.slow = 0, Slow()
        self._kept: dict[str, Reading] = {}
        self._order: tuple[int, Tensor] | None = None
        self._decoder = Decoder(patience)
        self._rooms: list[Clips] = []  # one a bucket, since a plan was made
        self._find_one_usable()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: Index) -> Sample:
        """The sample at a position in [0, infinity). Raises UserError if not one clip is usable."""
        if isinstance(position, tuple):
            return self._rooms[position[0]][position[1]]
        epoch, place = divmod(position, len(self))
        skipped: list[tuple[str, str]] = []
        for index in self._candidates(epoch, place):
            try:
                return {**self.read(self.entries[index], epoch), "skipped": skipped}
            except BadMedia as error:
                skipped.append((self.entries[index].id, str(error)))
        raise self._nothing_usable(skipped)

    def note(self, skipped: Sequence[tuple[str, str]], took: Sequence[tuple[str, float]] = ()) -> None:
        """Name clips that were skipped, or that `took` many seconds, each once.

        The loader calls it, since workers have no voice of their own.
        """
        for name, seconds in took:
            self.slow.see(name, seconds)
        self.replaced += len(skipped)
        named = {clip["id"] for clip in self.bad} if skipped else set()
        for name, reason in skipped:
            if name not in named:
                named.add(name)
                self.bad.append({"id": name, "reason": reason})
                log.warning("skipped clip %s: %s", name, reason)

    def lend(self, system: Any) -> None:
        """Give a system the weights of the autoencoders that encoded these clips, if they are encoded."""
        if self.stored is not None:
            self.stored.lend(system)

    def check(self, system: Any) -> None:
        """Raise UserError where a system cannot learn from these clips: other autoencoders have encoded them."""
        if self.stored is not None:
            self.stored.check(system)

    # ---- in which shape --------------------------------------------------------------------------------------------

    def plan(self, share: int | Budget) -> Plan:
        """Which clips make which step, for so many clips or tokens a step; every clip of the data is in it."""
        own = self.policy.shape
        if self.buckets is None:
            return Line(share if isinstance(share, int) else max(1, share.tokens // share.cost(own)))
        if isinstance(share, int):
            raise UserError("data.buckets needs `tokens`, what a step may hold, in place of `batch`.")
        shapes = self.buckets.shapes(own)
        self._rooms = [self._room(shape, entries) for shape, entries in zip(shapes, self._sorted(shapes), strict=True)]
        names, counts = tuple(map(spoken, shapes)), tuple(map(len, self._rooms))
        log.info("buckets: %s", ", ".join(f"{count} clips {name}" for name, count in zip(names, counts)))
        return self.buckets.layout(Epoch(names, counts, tuple(map(share.cost, shapes)), self.seed), share.tokens)

    def _sorted(self, shapes: list[ClipShape]) -> list[list[Entry]]:
        """The entries of each bucket. What cannot be read is in the first, whose turn will name it."""
        assert self.buckets is not None
        rooms: list[list[Entry]] = [[] for _ in shapes]
        for entry, clip in zip(self.entries, self._extents(), strict=True):
            rooms[0 if clip is None else self.buckets.bucket(shapes, clip, entry.id)].append(entry)
        return rooms

    def _extents(self) -> list[Extent | None]:
        """What each entry offers, None where it cannot be read."""
        found: list[Extent | None] = [None] * len(self)
        with ThreadPoolExecutor(READERS) as pool, bar("looking at clips", total=len(self)) as advance:

            def look(first: int) -> None:
                decoder = Decoder(self._decoder.seconds, self._decoder.refused)
                for i in range(first, len(self), READERS):
                    with suppress(BadMedia):
                        found[i] = decoder.extent(self.entries[i], self.policy)
                    advance(1)

            list(pool.map(look, range(READERS)))
        return found

    def _room(self, shape: ClipShape, entries: list[Entry]) -> Clips:
        """The same data in another shape."""
        room = copy(self)
        room.policy = self.policy.of(shape)
        room.policy.check()
        room.entries, room._kept, room._order, room._rooms = entries, {}, None, []
        return room

    # ---- which clip ------------------------------------------------------------------------------------------------

    def _candidates(self, epoch: int, place: int) -> Iterator[int]:
        """The clip of this place, then its replacements."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, noise.permutation(len(self), key=noise.key(self.seed, "order", epoch))
        first = int(self._order[1][place])
        yield first
        spare = noise.permutation(len(self), key=noise.key(self.seed, "replacement", epoch, self.entries[first].id))
        yield from (index for index in spare.tolist() if index != first)

    def _find_one_usable(self) -> None:
        """Fail at build, in bounded time, where nothing can be learned from."""
        skipped: list[tuple[str, str]] = []
        for index in noise.permutation(len(self), key=noise.key(self.seed, "check"))[:CHECKED].tolist():
            try:
                self.read(self.entries[index], 0)
                return self.note(skipped)
            except BadMedia as error:
                skipped.append((self.entries[index].id, str(error)))
        raise self._nothing_usable(skipped)

    def _nothing_usable(self, skipped: list[tuple[str, str]]) -> UserError:
        reasons = "; ".join(reason.rstrip(".") for _, reason in skipped[:5])
        return UserError(
            f"{self.path}: none of {len(skipped)} clips that were tried is usable. First reasons: {reasons}."
        )

    # ---- what of it ------------------------------------------------------------------------------------------------

    def read(self, entry: Entry, epoch: int) -> Sample:
        """One entry as it is in an epoch, without a replacement. Raises BadMedia if it cannot be used."""
        text = self._text(entry, epoch)
        about = {"text": text, "id": entry.id, "fps": self.policy.fps, "rate": self.policy.rate}
        about |= {"skipped": [], "took": 0.0}
        if self.stored is not None:
            encoded, valid = self.stored.read(entry.id, epoch, text)
            return cast(Sample, {"encoded": encoded, "valid": valid, **about})
        reading = self._kept.get(entry.id)
        if reading is None:
            reading = self._decoder.window(entry, self.policy, self._draws(entry, epoch))
            about["took"] = reading.took
            if self.cache and reading.settled:
                self._kept[entry.id] = reading
        return cast(Sample, {"video": reading.video, "audio": reading.audio, "valid": reading.valid, **about})

    def _draws(self, entry: Entry, epoch: int) -> Draws:
        purposes = ("window", "crop rows", "crop columns")
        keys = [noise.key(self.seed, purpose, epoch, entry.id) for purpose in purposes]
        window, rows, columns = noise.uniform(keys=keys).tolist()
        return Draws(window, (rows, columns))

    def _text(self, entry: Entry, epoch: int) -> str:
        if not entry.captions:
            return ""
        random = self.caption == "random"
        key = noise.key(self.seed, "caption", epoch, entry.id)
        return entry.captions[noise.integer(len(entry.captions), key=key) if random else 0]
