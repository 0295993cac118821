"""Two branches that denoise picture and sound together.

Both are made of the same block (dit.py). They share the embedding of the noise level and the cross-attention to text,
as the `share` key says, and meet in every `every`-th block through a bridge: bidirectional cross-attention whose
positions are seconds, in which both directions read the state before either has written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import attention, heads_of, merge_heads
from mmdiff.layers.embed import TimeEmbedding
from mmdiff.layers.norm import RMSNorm, rms_norm
from mmdiff.layers.rope import rotate
from mmdiff.models.dit import Block, Branch, Memory, TextAttention, condition, read, zero

SHARED = ("time", "text")
Clocks = dict[int, dict[str, Tensor]]  # size of a head -> name -> angles of the seconds of its tokens (b n e/2)


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


class JointDiT(nn.Module):
    """({"video": (b c t h w), "audio": (b c n)}, times of the same keys, cond) -> a dict like the first.

    `bridge` is the number of blocks from one meeting to the next; 0 never lets the branches meet.
    """

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
        share: Sequence[str] = SHARED,
        bridge: int = 1,
    ) -> None:
        super().__init__()
        check_sharing(share, video, audio)
        if bridge < 0:
            raise UserError(f"bridge: {bridge} is no distance between meetings; 1 meets in every block, 0 never.")
        specs = {"video": video, "audio": audio}
        text = "text" in share
        texts = _shared(specs, text, lambda spec: _text(spec, depth, heads, text_width))
        branches = {name: _branch(spec, depth, heads, texts[name]) for name, spec in specs.items()}
        self.time = _modules(_shared(specs, "time" in share, lambda spec: TimeEmbedding(spec.width)))
        self.vector = _modules(_shared(specs, text, lambda s: nn.Linear(text_width, s.width))) if text_width else None
        self.branches = _modules(branches)
        met = [bridge > 0 and i % bridge == bridge - 1 for i in range(depth)]
        self.bridges = nn.ModuleList(Bridge(video.width, audio.width, heads) if m else nn.Identity() for m in met)

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor], cond: Cond) -> dict[str, Tensor]:
        h, angles, c = {}, {}, {}
        for name, branch in self.branches.items():
            h[name], angles[name] = branch.open(x[name], cond["seconds"][name])
            vector = None if self.vector is None else self.vector[name]
            c[name] = condition(self.time[name](branch.token_time(t[name], x[name])), vector, cond)
        clocks = self.clocks(h, cond)
        for i, bridge in enumerate(self.bridges):
            blocks = {name: branch.blocks[i] for name, branch in self.branches.items()}
            memory = _memories(blocks, cond)  # of the text
            h = {name: blocks[name].attend(h[name], c[name], angles[name], memory[name]) for name in h}
            if isinstance(bridge, Bridge):
                h = bridge(h, c, clocks, cond)
            h = {name: blocks[name].feed(h[name], c[name]) for name in h}
        return {name: branch.close(h[name], c[name], x[name]) for name, branch in self.branches.items()}

    def clocks(self, h: dict[str, Tensor], cond: Cond) -> Clocks:
        """Where every token stands in seconds, once for each size of head among those that read."""
        heads = {branch.head for branch in self.branches.values()}
        seconds = cond["seconds"]
        return {e: {name: self.branches[name].clock(seconds[name], h[name], head=e) for name in h} for e in heads}


class Bridge(nn.Module):
    """Sound reads picture and picture reads sound; gates start at zero, so the branches start independent."""

    hot = ("forward",)  # the methods that are worth compiling
    read: Mapping[str, CrossModal]

    def __init__(self, video: int, audio: int, heads: int) -> None:
        super().__init__()
        self.read = _modules({"video": CrossModal(video, audio, heads), "audio": CrossModal(audio, video, heads)})

    def forward(self, h: dict[str, Tensor], c: dict[str, Tensor], clocks: Clocks, cond: Cond) -> dict[str, Tensor]:
        other = {"video": "audio", "audio": "video"}
        written = {}
        for name, source in other.items():
            clock = clocks[self.read[name].head]
            y = self.read[name](h[name], h[source], c[name], clock[name], clock[source])
            valid = cond["valid"][source] if "valid" in cond else None
            written[name] = y if valid is None else y * valid.to(y.dtype)[:, None, None, None, None]
        return {name: h[name] + written[name] for name in h}


class CrossModal(nn.Module):
    """One direction: x (b t h w d) reads y (b t' h' w' d'), both with angles that are a function of seconds alone."""

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(source, 2 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.out = nn.Linear(width, width)
        self.modulation = zero(nn.Linear(width, width))

    def forward(self, x: Tensor, y: Tensor, c: Tensor, clock_x: Tensor, clock_y: Tensor) -> Tensor:
        q = self.q(rms_norm(x)).flatten(1, 3).unflatten(-1, (self.heads, -1))  # (b n k e)
        k, v = self.kv(rms_norm(y)).flatten(1, 3).chunk(2, -1)  # (b m d)
        k = rotate(self.norm_k(k.unflatten(-1, (self.heads, -1))), clock_y).transpose(1, 2)  # (b k m e)
        q = rotate(self.norm_q(q), clock_x).transpose(1, 2)  # (b k n e)
        read = self.out(merge_heads(attention(q, k, heads_of(v, self.heads)))).view_as(x)
        return self.modulation(F.silu(c)) * read


def _memories(blocks: dict[str, Block], cond: Cond) -> dict[str, Memory | None]:
    """What each branch's block reads of the text; a module that both share is asked once."""
    made = {text: read(text, cond) for text in dict.fromkeys(block.text for block in blocks.values())}
    return {name: made[block.text] for name, block in blocks.items()}


def check_sharing(share: Sequence[str], video: BranchSpec, audio: BranchSpec) -> None:
    """Refuse names that cannot be shared, and sharing between branches of different width."""
    unknown = set(share) - set(SHARED)
    if unknown:
        raise UserError(f"share: {sorted(unknown)} cannot be shared; choose from {list(SHARED)}.")
    if share and video.width != audio.width:
        raise UserError(f"share: {list(share)} needs branches of one width, not {video.width} and {audio.width}.")


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
        spec.channels, spec.width, depth, heads, spec.patch, spec.attention, spec.window, spec.ratio, spec.conv, text
    )
