"""A system and a data set that are as small as the contract allows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.data.plans import Line
from mmdiff.data.slow import Slow
from mmdiff.train.settings import Engine, Every, Health, Optimizer, Sample


class Clips:
    """`n` clips of one 2 x 2 picture each; a clip's name decides its pixels."""

    def __init__(self, n: int = 32) -> None:
        self.n, self.slow = n, Slow()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, position: int) -> dict[str, Any]:
        i = int(noise.permutation(self.n, key=noise.key("order", position // self.n))[position % self.n])
        pixels = noise.normal([3, 1, 2, 2], keys=[noise.key("clip", i)])[0] * 40 + 127
        sample = {"video": pixels.clamp(0, 255).to(torch.uint8), "valid": {"video": True}, "skipped": [], "took": 0.0}
        return {**sample, "id": f"clip-{i}", "text": f"this is {i}", "fps": 8.0, "rate": 8000}

    def plan(self, share: int) -> Line:
        return Line(share)

    def note(self, skipped: Any, took: Any = ()) -> None:
        """Nothing is ever skipped."""
        for name, seconds in took:
            self.slow.see(name, seconds)

    def lend(self, system: Any) -> None:
        """Clips bring no weights."""

    def check(self, system: Any) -> None:
        """Any system can learn from clips."""


def second_half(step: int, batch: int = 8) -> str:
    """The name of a clip that the second of two ranks sees at a step."""
    return Clips()[(step - 1) * batch + batch // 2]["id"]


class Codec(nn.Module):
    """Divides by a scale that it takes from data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    @property
    def fitted(self) -> bool:
        return bool(self.scale > 0)


class Block(nn.Sequential):
    again = ("forward",)


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Linear(12, width)
        self.blocks = nn.ModuleList(Block(nn.SiLU(), nn.Linear(width, width)) for _ in range(3))
        self.modulation = nn.Linear(width, width)
        self.leave = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h * (1 + self.modulation(h)))


class System(nn.Module):
    """Denoises twelve numbers. `poison` maps a step to the clip whose loss is not a number then, `burst` to one whose
    loss is but whose gradient is infinite in one place, `leaps` to one whose loss is a hundred times what it was."""

    redraws = False

    def __init__(
        self,
        poison: dict[int, str] | None = None,
        burst: dict[int, str] | None = None,
        leaps: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codec, self.learner = Codec(), nn.ModuleDict({"net": Net()})
        self.poison, self.burst, self.leaps = poison or {}, burst or {}, leaps or {}

    def players(self) -> dict[str, nn.Module]:
        return {"learner": self.learner}

    def fit(self, batches: Any) -> None:
        self.codec.scale = torch.cat([b["video"] for b in batches]).std()

    def errors(self, x: Tensor, eps: Tensor) -> Tensor:
        x = (x.flatten(1) / self.codec.scale).to(next(self.learner.parameters()).device)
        return (self.learner["net"](x + eps.to(x)) - x).square().mean(1)

    def loss(self, batch: dict[str, Any], *, seed: int, step: int, player: str) -> tuple[Tensor, dict[str, Tensor]]:
        eps = noise.normal([12], keys=noise.keys(seed, "noise", step, batch["id"]))
        error = self.errors(batch["video"], eps)
        bad = [float("nan") if self.poison.get(step) in (name, "all") else 1.0 for name in batch["id"]]
        loss = (error * torch.tensor(bad).to(error)).mean()
        if self.leaps.get(step) in (*batch["id"], "all"):
            loss = loss * 100
        if self.burst.get(step) in batch["id"]:
            one = error.sum()
            loss = loss + (one - one.detach()).sqrt()  # nothing, with an infinite slope
        return loss, {"loss/video": loss.detach()}

    def held_out(self, batch: dict[str, Any], *, times: Any, seed: int) -> dict[str, list[float]]:
        eps = noise.normal([12], keys=noise.keys(seed, "held-out", 0, batch["id"]))
        return {"video": [float(self.errors(batch["video"], t * eps).mean()) for t in times]}

    def generate(self, batch: Any, *, seed: int, steps: int, sampler: str, guidance: float) -> dict[str, Any]:
        b = len(batch["text"])
        x = self.learner["net"](noise.normal([12], keys=noise.keys(seed, "start", 0, batch["id"])))
        video = x.float().tanh()[:, :3, None, None, None].expand(b, 3, 4, 16, 16)
        return {**batch, "video": video, "fps": torch.full((b,), 8.0)}


class Shared(System):
    """The same network under two names, as branches share layers."""

    def __init__(self) -> None:
        super().__init__()
        self.learner["again"] = self.learner["net"]


@dataclass
class Run:
    run: str
    seed: int = 0
    steps: int = 8
    batch: int = 8
    tokens: int | None = None
    accumulate: int = 1
    keep: int = 2
    start: str | None = None
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-2, warmup=2, ema=0.9, weight_decay=0.01))
    engine: Engine = field(default_factory=lambda: Engine(precision="fp32"))
    every: Every = field(default_factory=lambda: Every(log=1, save=4))
    sample: Sample = field(default_factory=lambda: Sample(number=2))
    health: Health = field(default_factory=Health)


def train(run: Run, *, system: System | None = None, stop: Any = None, config: dict[str, Any] | None = None) -> int:
    """`loop.fit` on the fakes."""
    from dataclasses import asdict

    from mmdiff.train import loop
    from mmdiff.train.ranks import join
    from mmdiff.train.stop import Stop

    stop = stop or Stop()
    try:
        return loop.fit(
            run,
            config=config or asdict(run),
            system=system or System(),
            train=Clips(),
            held_out=Clips(10),
            ranks=join(run.engine),
            stop=stop,
        )
    finally:
        stop.restore()


def hashes(folder: Any) -> dict[str, str]:
    """What a checkpoint's manifest says about its tensors."""
    import json
    from pathlib import Path

    files = json.loads((Path(folder) / "manifest.json").read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items() if name.endswith(".safetensors")}


os.environ.setdefault("OMP_NUM_THREADS", "1")
