"""What the sounding world is made of: tables of words, tiers, and the frozen records of scenes, events and facts.

The one idea: a scene is a small frozen record, and everything else - positions, impacts, stated facts - is a closed
form of it, so that a generated clip can be judged against exact answers. Lengths are in units of a 32 x 32 canvas
(pixels of the `cpu` tier; y points down) and times in seconds. The hold-outs follow Johnson et al., "CLEVR" (2017),
section 4.7.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mmdiff.errors import UserError

CANVAS = 32.0
LOWEST_RATE, HIGHEST_RATE = 8000, 48000  # Hz; the highest partial of a voice lies at 3.75 kHz
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.9, 0.1),
    "blue": (0.1, 0.2, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "magenta": (1.0, 0.1, 1.0),
    "cyan": (0.1, 0.9, 1.0),
}
SHAPES = ("circle", "square", "triangle")
SIZES: dict[str, float] = {"small": 3.0, "large": 4.5}  # half the width and half the height of every shape
TIMBRES = ("bell", "wood", "click")
MATERIALS = TIMBRES
DIRECTIONS = ("left", "right", "up", "down")
SPLITS = ("train", "val", "iid", "comp", "count", "para", "bind")
BINDINGS = ("by_shape", "by_material_text", "random")
BY_SHAPE = dict(zip(SHAPES, TIMBRES, strict=True))
HELD_OUT_PAIRS = frozenset(
    [("red", "triangle"), ("green", "square"), ("blue", "circle")]
    + [("yellow", "triangle"), ("magenta", "square"), ("cyan", "circle")]
)
HELD_OUT_BINDINGS = frozenset([("wood", "circle"), ("click", "square"), ("bell", "triangle")])  # (timbre, shape)


@dataclass(frozen=True)
class Tier:
    """A resolution: `size` pixels a side, `frames` at `fps` a second, `rate` audio samples a second, and its view."""

    name: str
    size: int
    frames: int
    fps: float
    rate: int
    view: Literal["plain", "live"] = "plain"

    @property
    def seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.frames / self.fps

    @property
    def samples(self) -> int:
        """Length of a clip in audio samples."""
        return round(self.seconds * self.rate)

    def at(self, rate: int | None) -> Tier:
        """The same clips with sound at another rate; None leaves it. Raises UserError below what the voices need."""
        if rate is not None and not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise UserError(f"A sound rate of {rate} Hz is outside {LOWEST_RATE} to {HIGHEST_RATE} Hz.")
        return self if rate is None else replace(self, rate=rate)

    def to_json(self) -> dict[str, Any]:
        """The tier as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tier:
        """The tier that `to_json` wrote."""
        return cls(**data)


TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("ci", 16, 8, 8.0, 8000),
        Tier("cpu", 32, 16, 8.0, 8000),
        Tier("gpu-s", 64, 32, 16.0, 16000),
        Tier("gpu-m", 128, 48, 24.0, 16000),
        Tier("gpu-l", 256, 121, 24.0, 16000, "live"),
    )
}


@dataclass(frozen=True)
class Motion:
    """How an object moves: `drop` falls from rest, `slide` moves in `direction` at `speed`, `still` stays at `start`.

    Lengths in units of the 32-unit canvas, times in seconds; `restitution` is the share of speed kept by an impact.
    """

    kind: str
    direction: str = ""
    speed: float = 0.0
    gravity: float = 0.0
    restitution: float = 0.0
    start: tuple[float, float] = (16.0, 16.0)

    def to_json(self) -> dict[str, Any]:
        """The motion as a JSON object."""
        return {**asdict(self), "start": list(self.start)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Motion:
        """The motion that `to_json` wrote."""
        return cls(**{**data, "start": tuple(data["start"])})


@dataclass(frozen=True)
class Object:
    """A coloured shape with a motion and the sound of its impacts."""

    colour: str
    shape: str
    size: str
    motion: Motion
    timbre: str

    def to_json(self) -> dict[str, Any]:
        """The object as a JSON object."""
        return {**asdict(self), "motion": self.motion.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Object:
        """The object that `to_json` wrote."""
        return cls(**{**data, "motion": Motion.from_json(data["motion"])})


@dataclass(frozen=True)
class Event:
    """An impact at `t` seconds of object number `object` on a surface (floor, left, right, top), at `speed` units/s."""

    t: float
    object: int
    surface: str
    speed: float

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Event:
        """The event that `to_json` wrote."""
        return cls(**data)


@dataclass(frozen=True)
class Scene:
    """A plain `background` (RGB in 0..1) before which `objects` move; `binding` says what decides their timbres."""

    background: tuple[float, float, float]
    objects: tuple[Object, ...]
    binding: str = "by_shape"

    def to_json(self) -> dict[str, Any]:
        """The scene as a JSON object."""
        objects = [thing.to_json() for thing in self.objects]
        return {"background": list(self.background), "objects": objects, "binding": self.binding}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """The scene that `to_json` wrote."""
        red, green, blue = data["background"]
        return cls((red, green, blue), tuple(map(Object.from_json, data["objects"])), data["binding"])


@dataclass(frozen=True)
class ObjectFacts:
    """What is stated about one object; None is "not stated". `bounces` counts the floor impacts of a drop."""

    colour: str
    shape: str
    size: str | None
    motion: str
    direction: str | None
    bounces: int | None
    timbre: str | None

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ObjectFacts:
        """The facts that `to_json` wrote."""
        return cls(**data)


Facts = tuple[ObjectFacts, ...]
