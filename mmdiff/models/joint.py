"""Two branches that denoise picture and sound together.

Both are made of the same block (dit.py). What they share is the `share` key: the embedding of the noise level, the
cross-attention to text, the feed-forward halves, or whole blocks. How they meet is the `meet` key (meeting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.embed import TimeEmbedding
from mmdiff.models.block import Block, Memory, TextAttention, read
from mmdiff.models.dit import Branch, condition
from mmdiff.models.meeting import EACH_OTHER, Meet

SHARED = {  # what may be shared -> the keys of the branches that have to agree for it
    "time": ("width",),
    "text": ("width",),
    "feed_forward": ("width", "ratio"),
    "blocks": ("width", "ratio", "attention", "window", "conv"),
}


@dataclass(frozen=True)
class BranchSpec:
    """The shape of one modality's branch; depth, heads and text are common to both."""

    channels: int
    width: int
    patch: tuple[int, int, int] = (1, 1, 1)
    attention: str = "full"
    window: tuple[int, int, int] = (4, 4, 4)
    ratio: float = 8 / 3
    conv: int = 0
    octaves: int = 0


class JointDiT(nn.Module):
    """({"video": (b c t h w), "audio": (b c n)}, times of the same keys, cond) -> a dict like the first."""

    time: Mapping[str, TimeEmbedding]
    vector: Mapping[str, nn.Linear] | None
    branches: Mapping[str, Branch]

    def __init__(
        self,
        *,
        video: BranchSpec,
        audio: BranchSpec,
        depth: int,
        heads: int,
        text_width: int = 0,
        share: Sequence[str] = ("time", "text"),
        meet: Meet = EACH_OTHER,
    ) -> None:
        super().__init__()
        check_sharing(share, video, audio)
        specs = {"video": video, "audio": audio}
        text = "text" in share
        texts = _shared(specs, text, lambda spec: _text(spec, depth, heads, text_width))
        branches = {name: _branch(spec, depth, heads, texts[name]) for name, spec in specs.items()}
        tie(branches, share)
        self.time = _modules(_shared(specs, "time" in share, lambda spec: TimeEmbedding(spec.width)))
        self.vector = _modules(_shared(specs, text, lambda s: nn.Linear(text_width, s.width))) if text_width else None
        self.branches = _modules(branches)
        widths = {name: spec.width for name, spec in specs.items()}
        self.meet, self.bridges = meet, nn.ModuleList(meet(widths, heads=heads, depth=depth))

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor], cond: Cond) -> dict[str, Tensor]:
        h, angles, c, times = {}, {}, {}, {}
        for name, branch in self.branches.items():
            h[name], angles[name] = branch.open(x[name], cond["seconds"][name])
            vector = None if self.vector is None else self.vector[name]
            c[name] = condition(self.time[name](branch.token_time(t[name], x[name])), vector, cond)
            times[name] = branch.times(cond["seconds"][name])
        places = self.meet.places(times, h, heads={branch.head for branch in self.branches.values()})
        for i, bridge in enumerate(self.bridges):
            if i in cond.get("skip", ()):
                continue
            blocks = {name: branch.blocks[i] for name, branch in self.branches.items()}
            memory = _memories(blocks, cond)  # of the text
            h = {name: blocks[name].attend(h[name], c[name], angles[name], memory[name]) for name in h}
            h = bridge(h, c, places, cond)
            h = {name: blocks[name].feed(h[name], c[name]) for name in h}
        return {name: branch.close(h[name], c[name], x[name]) for name, branch in self.branches.items()}

    @property
    def skippable(self) -> int:
        """How many blocks a condition may name in its `skip`."""
        return len(self.bridges)


def _memories(blocks: dict[str, Block], cond: Cond) -> dict[str, Memory | None]:
    """What each branch's block reads of the text; a module that both share is asked once."""
    made = {text: read(text, cond) for text in dict.fromkeys(block.text for block in blocks.values())}
    return {name: made[block.text] for name, block in blocks.items()}


def check_sharing(share: Sequence[str], video: BranchSpec, audio: BranchSpec) -> None:
    """Refuse names that cannot be shared, and sharing between branches that differ in what it needs."""
    for name in share:
        if name not in SHARED:
            raise UserError(f"share: {name!r} cannot be shared; choose from {list(SHARED)}.")
        for key in SHARED[name]:
            a, b = getattr(video, key), getattr(audio, key)
            if a != b:
                raise UserError(f"share: {name} needs branches of one {key}, not {a} and {b}.")


def tie(branches: Mapping[str, Branch], share: Sequence[str]) -> None:
    """Give the second branch the first one's blocks, or their feed-forward halves."""
    video, audio = branches.values()
    if "blocks" in share:
        audio.blocks = video.blocks
    if "feed_forward" in share:
        for ours, theirs in zip(video.blocks, audio.blocks, strict=True):
            theirs.mlp = ours.mlp


def _shared(specs: dict[str, BranchSpec], share: bool, make: Callable[[BranchSpec], Any]) -> dict[str, Any]:
    """One part per modality: the same object twice if it is shared."""
    if share:
        part = make(specs["video"])
        return dict.fromkeys(specs, part)
    return {name: make(spec) for name, spec in specs.items()}


def _modules(parts: dict[str, Any]) -> Any:
    """A ModuleDict, which is the Mapping that its owner declares."""
    return nn.ModuleDict(parts)


def _text(spec: BranchSpec, depth: int, heads: int, text_width: int) -> list[TextAttention] | None:
    return [TextAttention(spec.width, heads, text_width) for _ in range(depth)] if text_width else None


def _branch(spec: BranchSpec, depth: int, heads: int, text: list[TextAttention] | None) -> Branch:
    return Branch(
        spec.channels,
        spec.width,
        depth,
        heads,
        spec.patch,
        spec.attention,
        spec.window,
        spec.ratio,
        spec.conv,
        text,
        spec.octaves,
    )
