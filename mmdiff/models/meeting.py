"""How branches meet: who hears whom, from how far away, by which clock, and how loudly.

The one idea: every mechanism is a graph. An edge (teller, source) of a reader lets it attend to the source's tokens,
whose keys and values the teller's weights make; a reader takes one softmax over all that it hears. Cross-attention has
the edges between modalities (as LTX-2 and Ovi), joint attention adds each modality's edge to itself, so that both are
one sequence (Esser et al. 2024, MM-DiT), one direction leaves edges out, a window shortens them in seconds (after Ruan
et al. 2023, MM-Diffusion), and branches that stay apart have none. All gates are closed at birth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import attention, heads_of, merge_heads
from mmdiff.layers.norm import RMSNorm, rms_norm
from mmdiff.layers.rope import grid_angles, rotate
from mmdiff.models.block import zero

Parts = dict[str, Tensor]  # by modality
Edge = tuple[str, str]  # whose weights make keys and values, of whose tokens
Graph = dict[str, tuple[Edge, ...]]  # reader -> what it hears
Gate = Literal["own", "other", "both"]  # whose noise level opens the gate of a reader
CLOSE = 1e-4  # seconds; times closer than this are one

# ---- clocks: seconds of token midpoints, name -> (b t), to positions on the axis that both share ---------------------


def seconds(times: Parts) -> Parts:
    """Midpoints in seconds: what happens at one moment has one position."""
    return times


def scaled_index(times: Parts) -> Parts:
    """Index times duration of a token: both axes have one scale, but positions are beginnings, not midpoints."""
    return {name: torch.arange(t.shape[1], device=t.device) * spacing(t) for name, t in times.items()}


def rounded_index(times: Parts) -> Parts:
    """Midpoint of the coarsest modality's token at that moment: the finer modality has several tokens a position."""
    step = torch.stack([spacing(t) for t in times.values()]).amax(0)  # (b 1)
    return {name: (((t + CLOSE) / step).floor() + 0.5) * step for name, t in times.items()}


def none(times: Parts) -> Parts:
    """No position at all: attention across modalities cannot tell moments apart by where they stand."""
    return {name: torch.zeros_like(t) for name, t in times.items()}


CLOCKS: dict[str, Callable[[Parts], Parts]] = {
    "seconds": seconds,
    "scaled_index": scaled_index,
    "rounded_index": rounded_index,
    "none": none,
}
Clock = Literal["seconds", "scaled_index", "rounded_index", "none"]


def spacing(times: Tensor) -> Tensor:
    """(b t) midpoints -> (b 1) seconds from one token to the next; a single token lasts twice its midpoint."""
    return times[:, 1:2] - times[:, :1] if times.shape[1] > 1 else 2 * times


# ---- places --------------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """Where tokens stand to each other, computed once for all blocks."""

    angles: dict[int, Parts]  # size of a reader's head -> name -> (b n e/2)
    near: dict[tuple[str, str], Tensor]  # (reader, source) -> (b n m) True inside the window; empty without a window


def stand(times: Parts, h: Parts, *, heads: set[int], clock: str, window: float | None) -> Places:
    """times (b t) of the tokens h (b t h w d)."""
    positions = CLOCKS[clock](times)
    angles = {e: {name: _each(grid_angles(p, (1, 1), head=e), h[name]) for name, p in positions.items()} for e in heads}
    if window is None:
        return Places(angles, {})
    moments = {name: _each(t[..., None, None, None], h[name])[..., 0] for name, t in times.items()}  # (b n)
    pairs = [(reader, source) for reader in h for source in h if reader != source]
    return Places(angles, {(a, b): within(moments[a], moments[b], window) for a, b in pairs})


def within(reader: Tensor, source: Tensor, window: float) -> Tensor:
    """(b n), (b m) seconds -> (b n m): no farther than `window`, and the nearest in any case."""
    gap = (reader[:, :, None] - source[:, None]).abs()
    return (gap <= window + CLOSE) | (gap <= gap.amin(-1, keepdim=True) + CLOSE)


def _each(z: Tensor, h: Tensor) -> Tensor:
    """Of each time step (b t 1 1 e) -> of each token (b t*h*w e)."""
    return z.expand(*h.shape[:4], -1).flatten(1, 3)


# ---- the mechanisms, as a config names them ------------------------------------------------------------------------


class Meet(Protocol):
    """A mechanism: it makes the layer of every block, and says where tokens stand."""

    def __call__(self, widths: Mapping[str, int], *, heads: int, depth: int) -> list[nn.Module]:
        """One layer (h, c, places, cond) -> h for each of `depth` blocks."""

    def places(self, times: Parts, h: Parts, *, heads: set[int]) -> Places:
        """What all of these layers need to know of the tokens; heads are the sizes of heads that occur."""


@dataclass(frozen=True)
class Apart:
    """The branches never meet."""

    def __call__(self, widths: Mapping[str, int], *, heads: int, depth: int) -> list[nn.Module]:
        return [Passing() for _ in range(depth)]

    def places(self, times: Parts, h: Parts, *, heads: set[int]) -> Places:
        return Places({}, {})


@dataclass(frozen=True)
class Hearing:
    """What the mechanisms by attention have in common: they meet in every `every`-th block.

    `window` is in seconds (None hears everything); it hides tokens, it does not save their arithmetic. `gate` is a
    function of the reader's own noise level, of the other's, or of both.
    """

    every: int = 1
    window: float | None = None
    gate: Gate = "own"
    clock: Clock = "seconds"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"meet.every: {self.every} is no distance between meetings; 1 meets in every block.")
        if self.window is not None and self.window < 0:
            raise UserError(f"meet.window: {self.window} seconds cannot be; leave it out to hear everything.")

    def __call__(self, widths: Mapping[str, int], *, heads: int, depth: int) -> list[nn.Module]:
        graph = self.graph(widths)
        met = [i % self.every == self.every - 1 for i in range(depth)]
        return [Meeting(widths, graph, heads=heads, gate=self.gate) if m else Passing() for m in met]

    def places(self, times: Parts, h: Parts, *, heads: set[int]) -> Places:
        return stand(times, h, heads=heads, clock=self.clock, window=self.window)

    @abstractmethod
    def graph(self, widths: Mapping[str, int]) -> Graph:
        """Who hears whom."""


@dataclass(frozen=True)
class CrossAttention(Hearing):
    """Each modality attends to the other one, or in one `direction` only: video_to_audio lets sound see the picture."""

    direction: Literal["both", "video_to_audio", "audio_to_video"] = "both"

    def graph(self, widths: Mapping[str, int]) -> Graph:
        readers = {"both": list(widths), "video_to_audio": ["audio"], "audio_to_video": ["video"]}[self.direction]
        return {name: tuple((name, source) for source in widths if source != name) for name in readers}


EACH_OTHER = CrossAttention()


@dataclass(frozen=True)
class JointAttention(Hearing):
    """One sequence: each modality attends to the tokens of both in one softmax, beside its own self-attention.

    It has as many weights as cross-attention in both directions.
    """

    def graph(self, widths: Mapping[str, int]) -> Graph:
        if len(set(widths.values())) > 1:
            raise UserError(
                f"meet: joint_attention makes one sequence of branches of one width, not of {dict(widths)}."
            )
        return {name: tuple((source, source) for source in widths) for name in widths}


# ---- layers --------------------------------------------------------------------------------------------------------


class Passing(nn.Module):
    """A block in which the branches do not meet."""

    def forward(self, h: Parts, c: Parts, places: Places, cond: Cond) -> Parts:
        return h


class Meeting(nn.Module):
    """One meeting along a graph; all read the state before any has written."""

    hot = ("forward",)  # as in block.py
    read: Mapping[str, Reading]

    def __init__(self, widths: Mapping[str, int], graph: Graph, *, heads: int, gate: Gate) -> None:
        super().__init__()
        self.graph = graph
        others = {name: next(other for other in widths if other != name) for name in graph}
        self.levels = {name: {"own": (name,), "other": (o,), "both": (name, o)}[gate] for name, o in others.items()}
        told = {teller: source for edges in graph.values() for teller, source in edges}
        self.read = nn.ModuleDict(  # type: ignore[assignment]
            {
                name: Reading(widths[name], widths[told[name]], sum(widths[level] for level in levels), heads)
                for name, levels in self.levels.items()
            }
        )

    def forward(self, h: Parts, c: Parts, places: Places, cond: Cond) -> Parts:
        valid = cond.get("valid", {})
        edges = dict.fromkeys(edge for heard in self.graph.values() for edge in heard)
        told = {edge: self._tell(edge, h, places) for edge in edges}
        written = {name: self._hear(name, h, told, places, valid) for name in self.graph}
        gates = {name: self.read[name].modulation(F.silu(self._level(name, c, valid))) for name in self.graph}
        return {name: h[name] + gates[name] * written[name] if name in written else h[name] for name in h}

    def _tell(self, edge: Edge, h: Parts, places: Places) -> tuple[Tensor, Tensor]:
        teller, source = edge
        part = self.read[teller]
        return part.tell(h[source], places.angles[part.head][source])

    def _hear(
        self, name: str, h: Parts, told: Mapping[Edge, tuple[Tensor, Tensor]], places: Places, valid: Parts
    ) -> Tensor:
        """What a reader hears (b t h w d); exactly zero in clips that have nothing to be heard."""
        part, edges = self.read[name], self.graph[name]
        k, v = (torch.cat(z, 2) for z in zip(*(told[edge] for edge in edges), strict=True))  # (b k m e)
        if len(edges) > 1:  # its own tokens are always there
            return part(h[name], places.angles[part.head][name], k, v, self._mask(name, h, places, valid))
        source = edges[0][1]
        y = part(h[name], places.angles[part.head][name], k, v, places.near.get((name, source)))
        return y if source not in valid else y * valid[source].to(y.dtype)[:, None, None, None, None]

    def _mask(self, name: str, h: Parts, places: Places, valid: Parts) -> Tensor:
        """(b n m) True where a token of the reader may look: at its own, and at others near it that are there."""
        b, n = len(h[name]), h[name].shape[1:4].numel()
        masks = []
        for _, source in self.graph[name]:
            near = places.near.get((name, source), h[name].new_ones(b, 1, h[source].shape[1:4].numel()).bool())
            here = valid[source][:, None, None] if source in valid and source != name else True
            masks.append((near & here).expand(b, n, -1))
        return torch.cat(masks, 2)

    def _level(self, name: str, c: Parts, valid: Parts) -> Tensor:
        """What opens the gate: (b t|1 h|1 w|1 d) of the reader itself, the mean over (t h w) of another one."""
        levels = self.levels[name]
        if levels == (name,):
            return c[name]
        others = {other: c[other].mean((1, 2, 3), keepdim=True) for other in levels if other != name}
        heard = {o: z * valid[o].to(z.dtype)[:, None, None, None, None] if o in valid else z for o, z in others.items()}
        return torch.cat([heard.get(o, c[name]).expand(*c[name].shape[:4], -1) for o in levels], -1)


class Reading(nn.Module):
    """The weights by which one branch asks (q), tells (k, v), and writes what it heard (out, a gate)."""

    def __init__(self, width: int, source: int, level: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(source, 2 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.out = nn.Linear(width, width)
        self.modulation = zero(nn.Linear(level, width))

    def tell(self, y: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b t h w d'), angles (b m e/2) -> keys and values (b k m e)."""
        k, v = self.kv(rms_norm(y)).flatten(1, 3).chunk(2, -1)  # (b m d)
        k = rotate(self.norm_k(k.unflatten(-1, (self.heads, -1))), angles)  # (b m k e)
        return k.transpose(1, 2), heads_of(v, self.heads)

    def forward(self, x: Tensor, angles: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens x (b t h w d) hear keys and values where mask (b n m) -> like x, before the gate."""
        q = self.q(rms_norm(x)).flatten(1, 3).unflatten(-1, (self.heads, -1))  # (b n k e)
        q = rotate(self.norm_q(q), angles).transpose(1, 2)  # (b k n e)
        return self.out(merge_heads(attention(q, k, v, mask=mask))).view_as(x)
