"""Diffusion of one modality, in the latent space of any autoencoder (`Pixels` makes it pixel diffusion).

Prompt to clip: condition, guide, walk the denoiser from noise to a latent, decode. Clip to loss: encode, condition with
captions dropped at random, add noise, compare. The joint system (joint.py) changes only what a latent is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdiff import noise as draws
from mmdiff.batch import Batch, ClipShape, Cond
from mmdiff.conditioners import dropped, emptied
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.guidance import cfg
from mmdiff.sampling import SAMPLERS, start, uniform
from mmdiff.systems.base import Autoencoder, Logs, Report, System

UNSAID = Batch()  # of which nothing is known but what the system says of all


class Diffusion(System):
    """A denoiser, its conditioner and its autoencoder. Latents are whatever the autoencoder makes, (b c ...)."""

    def __init__(
        self,
        *,
        autoencoder: nn.Module,
        conditioner: nn.Module,
        denoiser: Denoiser,
        shape: ClipShape,
        modality: str = "video",
        drop: float = 0.1,
        grid: Callable[[int], Tensor] = uniform,
    ) -> None:
        super().__init__()
        self.autoencoders = nn.ModuleDict({modality: autoencoder})
        self.learner = nn.ModuleDict({"denoiser": denoiser, "conditioner": conditioner})
        self.shape, self.drop, self.grid = shape, drop, grid

    # ---- what is learned -------------------------------------------------------------------------------------------

    def players(self) -> dict[str, nn.Module]:
        return {"learner": self.learner}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit each autoencoder to the clips that have its modality."""
        kept = [(b["valid"], b) for b in batches]
        for name, codec in self.codecs.items():
            if not codec.fitted:
                codec.fit(torch.cat([clips(b, name)[valid[name]] for valid, b in kept]))

    def loss(self, batch: Batch, *, seed: int, step: int, player: str = "learner") -> tuple[Tensor, Logs]:
        """Mean over the batch; a modality that a clip lacks adds exactly zero to the loss and to every gradient."""
        ids, device = batch["id"], self.device
        t = self.draw_times(draws.uniform(keys=draws.keys(seed, "time", step, ids), device=device), batch)
        drop = draws.uniform(keys=draws.keys(seed, "drop", step, ids)) < self.drop
        errors = self.errors(dropped(batch, drop), t=t, keys=draws.keys(seed, "noise", step, ids))
        return self.weigh(errors, batch["valid"])

    def errors(self, batch: Batch, *, t: Tensor, keys: Sequence[int]) -> dict[str, Tensor]:
        """Mean squared error of each sample, per modality -> name: (b,)."""
        with torch.no_grad():
            x0 = self.encode(batch)  # (b c ...)
        noise = draws.normal(x0.shape[1:], keys=keys, device=x0.device)
        return self.split(self.denoiser.errors(x0, self.condition(batch), t=t, noise=noise), batch)

    def weigh(self, errors: dict[str, Tensor], valid: dict[str, Tensor]) -> tuple[Tensor, Logs]:
        """Sum of the modalities' losses; logs are means over the clips that have the modality."""
        total, logs = torch.zeros((), device=self.device), {}
        for name, error in errors.items():
            here = valid[name].to(error.device)
            total = total + torch.where(here, error, 0.0).mean() * self.weight(name)
            logs[f"loss/{name}"] = torch.where(here, error, 0.0).sum().detach() / here.sum().clamp(min=1)
        return total, logs

    @torch.no_grad()
    def held_out(self, batch: Batch, *, times: Sequence[float], seed: int) -> dict[str, list[float]]:
        """name -> one mean error per time, with noise that depends on the clip alone."""
        curves: dict[str, list[float]] = {name: [] for name in self.autoencoders}
        for time in times:
            t = torch.full((len(batch["id"]),), time, device=self.device)
            errors = self.errors(batch, t=t, keys=draws.keys(seed, "held-out", 0, batch["id"]))
            for name, (_, logs) in ((n, self.weigh({n: e}, batch["valid"])) for n, e in errors.items()):
                curves[name].append(float(logs[f"loss/{name}"]))
        return curves

    # ---- how it dreams ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        *,
        seed: int,
        steps: int = 25,
        sampler: str = "euler",
        guidance: float = 1.0,
        shape: ClipShape | None = None,
        report: Report | None = None,
    ) -> Batch:
        """batch needs "text" and "id"; everything else about the clips is in `shape`, or else the system's own."""
        if sampler not in SAMPLERS:
            raise UserError(f"There is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        batch = self.blank(batch, shape)
        times, process = self.grid(steps), self.denoiser.process
        x = draws.normal(self.latent_shape(batch), keys=draws.keys(seed, "start", 0, batch["id"]), device=self.device)
        denoise = cfg(self.denoise(batch), self.denoise(emptied(batch)), scale=guidance)
        x = start(x, process=process, times=times)
        fresh = self._fresh(sampler, x, batch, seed)
        x = SAMPLERS[sampler](denoise, x, process=process, times=times, report=report, **fresh)
        return self.decode(x, batch, keys=draws.keys(seed, "decode", 0, batch["id"]))

    def denoise(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser under one condition, which is computed once."""
        cond = self.condition(batch)
        return lambda x, t: self.denoiser(x, t, cond)

    def blank(self, batch: Batch, shape: ClipShape | None = None) -> Batch:
        """A batch that names clips and describes them, completed by what the shape says about all of them."""
        b, shape = len(batch["text"]), shape or self.shape
        fps, ids = torch.full((b,), shape.fps), batch.get("id") or [str(i) for i in range(b)]
        everywhere = {name: torch.ones(b, dtype=torch.bool) for name in self.autoencoders}
        return Batch(text=batch["text"], id=ids, fps=fps, rate=shape.rate, valid=everywhere, shape=shape)

    def condition(self, batch: Batch) -> Cond:
        """The conditioner's routes, plus shape and clock of the latents and which modalities are there."""
        cond = self.learner["conditioner"](batch)
        device = self.device
        return Cond(
            **cond,
            shapes=self.latent_shapes(batch),
            seconds={name: s.to(device) for name, s in self.seconds(batch).items()},
            valid={name: v.to(device) for name, v in batch["valid"].items()},
        )

    # ---- what a latent is ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Tensor:
        """Clips -> latents (b c ...)."""
        ((name, codec),) = self.codecs.items()
        return codec.encode(clips(batch, name).to(self.device))

    def decode(self, x: Tensor, batch: Batch, *, keys: Sequence[int]) -> Batch:
        """Latents -> the batch with clips in it."""
        ((name, codec),) = self.codecs.items()
        return cast(Batch, {**batch, name: decode_with(codec, x, keys)})

    def split(self, errors: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Errors (b c ...) -> name: (b,)."""
        return dict.fromkeys(self.autoencoders, errors.flatten(1).mean(1))

    def weight(self, name: str) -> float:
        """The share of a modality in the loss."""
        return 1.0

    def latent_shapes(self, batch: Batch = UNSAID) -> dict[str, tuple[int, ...]]:
        """name -> shape of one clip's latent: of the batch's clips, of the shape it asks for, or of the system's."""
        shape = batch.get("shape", self.shape)
        clip = {"video": (3, shape.frames, *shape.size), "audio": (1, shape.samples)}
        held = {name: tuple(clips(batch, name).shape[1:]) for name in self.codecs if name in batch}
        return {name: tuple(a.grid(held.get(name, clip[name]))) for name, a in self.codecs.items()}

    def latent_shape(self, batch: Batch = UNSAID) -> tuple[int, ...]:
        """The shape of one sample as the denoiser sees it."""
        return next(iter(self.latent_shapes(batch).values()))

    def seconds(self, batch: Batch) -> dict[str, Tensor]:
        """name -> (b t) midpoints of the latent time steps, by each clip's own rate."""
        rates = {"video": batch["fps"].tolist(), "audio": [batch["rate"]] * len(batch["text"])}
        shapes = self.latent_shapes(batch)
        return {
            name: torch.stack([a.seconds(shapes[name][1], rate=rate) for rate in rates[name]]).float()
            for name, a in self.codecs.items()
        }

    # ---- small things ----------------------------------------------------------------------------------------------

    @property
    def codecs(self) -> Mapping[str, Autoencoder]:
        """The autoencoders by modality."""
        return cast(Mapping[str, Autoencoder], self.autoencoders)

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser inside the learner."""
        return self.learner["denoiser"]  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.learner.parameters()).device

    def draw_times(self, u: Tensor, batch: Batch = UNSAID) -> Tensor:
        """Uniforms (b,) -> times (b,), by the denoiser's draw and the number of latent positions."""
        tokens = sum(math.prod(shape[1:]) for shape in self.latent_shapes(batch).values())
        return self.denoiser.draw(u, tokens=tokens)

    def _fresh(self, sampler: str, x: Tensor, batch: Batch, seed: int) -> dict[str, Callable[[int], Tensor]]:
        """The noise argument of the samplers that take one."""
        if sampler != "ancestral":
            return {}
        shape = x.shape[1:]
        return {"noise": lambda i: draws.normal(shape, keys=draws.keys(seed, "fresh", i, batch["id"]), device=x.device)}


def clips(batch: Batch, name: str) -> Tensor:
    """The clips of one modality (b c ...)."""
    if name not in batch:
        raise UserError(f"The data holds no {name}, which the system learns; it holds {', '.join(batch)}.")
    return cast(Tensor, batch[name])  # type: ignore[literal-required]


def decode_with(codec: Any, z: Tensor, keys: Sequence[int]) -> Tensor:
    """Decode; codecs that have to invent a phase draw it from the keys."""
    if getattr(codec, "invents_phase", False):
        return cast(Tensor, codec.decode(z, keys=list(keys)))
    return cast(Tensor, codec.decode(z))
