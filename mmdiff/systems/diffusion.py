"""Diffusion of one modality, in the latent space of any autoencoder (`Pixels` makes it pixel diffusion).

Prompt to clip: condition, guide, walk the denoiser from noise to a latent, decode. Clip to loss: encode, condition with
captions dropped at random, add noise, compare. The joint system (joint.py) changes only what a latent is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from mmdiff import noise as draws
from mmdiff import tasks as masks
from mmdiff.batch import Batch, ClipShape, Cond
from mmdiff.conditioners import connect, dropped
from mmdiff.coupling import Coupled, Coupling, SharedCoupling, local, spread
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.guidance import Guide, as_guide
from mmdiff.process import Denoise, Process, widen
from mmdiff.sampling import SAMPLERS, Sampler, uniform
from mmdiff.systems.base import Autoencoder, Conditioner, Logs, Report, System
from mmdiff.systems.given import learned, unknown_mean, whole
from mmdiff.systems.levels import by_level, positions, present
from mmdiff.systems.packing import chanced, packed_loss
from mmdiff.systems.views import walk
from mmdiff.systems.weights import FixedWeights, Weights

UNSAID = Batch()  # of which nothing is known but what the system says of all


class Diffusion(System):
    """A denoiser, its conditioner and its autoencoder. Latents are whatever the autoencoder makes, (b c ...)."""

    def __init__(
        self,
        *,
        autoencoder: Annotated[nn.Module, Autoencoder],
        conditioner: Annotated[nn.Module, Conditioner],
        denoiser: Denoiser,
        shape: ClipShape,
        modality: Literal["video", "audio"] = "video",
        drop: float = 0.1,
        grid: Callable[[int], Tensor] = uniform,
        tasks: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoders = nn.ModuleDict({modality: autoencoder})
        self.learner = nn.ModuleDict({"denoiser": denoiser, "conditioner": conditioner})
        self.shape, self.drop, self.grid, self.tasks = shape, drop, grid, tasks or {}
        masks.check(self.tasks, list(self.autoencoders))
        with torch.device("cpu"):  # also where the weights are built without memory
            denoiser.check_start(grid(1))
        self.shown = connect(conditioner, self.codecs, self.latent_shapes(), denoiser.net)  # is it told the first frame
        self.coupling: Coupling = SharedCoupling()
        self.weights: Weights = FixedWeights()

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
        if "parts" in batch:
            return packed_loss(self, batch, seed=seed, step=step)
        batch, t = self.drawn(batch, seed=seed, step=step)
        keys = draws.keys(seed, "noise", step, batch["id"])
        errors = self.errors(batch, t=spread(t, self.latent_shapes(batch)), keys=keys)
        batch["valid"] = learned(batch["valid"], batch["held"])
        loss, logs = self.weigh({n: self.denoiser.draw.balance(t[n], e) for n, e in errors.items()}, batch)
        return loss, logs | by_level(errors, t, batch["valid"])

    def drawn(self, batch: Batch, *, seed: int, step: int) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with its texts dropped and its tasks drawn, and the time of each clip in each modality."""
        ids, shapes = batch["id"], self.latent_shapes(batch)
        t = self.coupling(
            lambda purpose: draws.uniform(keys=draws.keys(seed, purpose, step, ids), device=self.device),
            partial(self.draw_times, batch=batch),
            list(self.autoencoders),
        )
        drop = draws.uniform(keys=draws.keys(seed, "drop", step, ids)) < self.drop
        held = masks.draw(self.tasks, shapes, seed=seed, step=step, ids=ids)
        valid = masks.kept(batch["valid"], self.tasks, seed=seed, step=step, ids=ids)
        return cast(Batch, {**dropped(batch, drop), "held": held, "valid": valid}), t

    def errors(self, batch: Batch, *, t: Tensor, keys: Sequence[int]) -> dict[str, Tensor]:
        """Mean squared error of each sample over what is not held, per modality -> name: (b,)."""
        x0, t, noise = self.noisy(batch, t=t, keys=keys)
        cond = self.condition(chanced(batch, keys=keys))
        return self.means(self.denoiser.errors(x0, cond, t=t, noise=noise), batch)

    @torch.no_grad()
    def noisy(self, batch: Batch, *, t: Tensor, keys: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """x0 (b c ...), its times and its noise; what is held stands at t = 0."""
        x0, held = self.encode(batch), self.held(batch)
        noise = draws.normal(x0.shape[1:], keys=keys, device=x0.device)
        return x0, t if held is None else torch.where(held, 0.0, widen(t, x0)), noise

    def means(self, errors: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Errors of every entry -> their mean over what is not held, per modality -> name: (b,)."""
        held = self.held(batch)
        free = {} if held is None else self.parts(held, batch)
        return {name: unknown_mean(error, free.get(name)) for name, error in self.parts(errors, batch).items()}

    def weigh(self, errors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Logs]:
        """The modalities' losses as one; logs are means over the clips that have the modality."""
        here = {name: batch["valid"][name].to(error.device) for name, error in errors.items()}
        means = {name: torch.where(here[name], error, 0.0).mean() for name, error in errors.items()}
        share = {name: valid.float().mean() for name, valid in here.items()}
        tokens = {name: math.prod(shape[1:]) for name, shape in self.latent_shapes(batch).items()}
        logs = {f"loss/{name}": present(error, here[name]) for name, error in errors.items()}
        return self.weights(means, share=share, tokens=tokens), logs

    @torch.no_grad()
    def held_out(self, batch: Batch, *, times: Sequence[float], seed: int) -> dict[str, list[float]]:
        """name -> one mean error per time, with noise that depends on the clip alone."""
        curves: dict[str, list[float]] = {name: [] for name in self.autoencoders}
        for time in times:
            t = torch.full((len(batch["id"]),), time, device=self.device)
            errors = self.errors(batch, t=t, keys=draws.keys(seed, "held-out", 0, batch["id"]))
            for name, error in errors.items():
                curves[name].append(float(present(error, batch["valid"][name].to(error.device))))
        return curves

    # ---- how it dreams ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        *,
        seed: int,
        steps: int = 25,
        sampler: str | Sampler = "euler",
        guidance: float | Guide = 1.0,
        shape: ClipShape | None = None,
        report: Report | None = None,
    ) -> Batch:
        """batch needs "text" and "id"; everything else about the clips is in `shape`, or else the system's own.

        What its masks `held` mark is taken from its latents or clips and comes back bit for bit in latent space.
        """
        batch = self.blank(batch, shape)
        x = self.dream(batch, seed=seed, steps=steps, sampler=sampler, guidance=guidance, report=report)
        return self.decode(x, batch, keys=draws.keys(seed, "decode", 0, batch["id"]))

    @torch.no_grad()
    def dream(
        self,
        batch: Batch,
        *,
        seed: int,
        steps: int,
        sampler: str | Sampler,
        guidance: float | Guide,
        report: Report | None,
    ) -> Tensor:
        """A batch that `blank` completed -> its latents, packed as the denoiser sees them."""
        if isinstance(sampler, str) and sampler not in SAMPLERS:
            raise UserError(f"There is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        chosen = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
        return walk(self, batch, seed=seed, steps=steps, sampler=chosen, guide=as_guide(guidance), report=report)

    def denoise(self, batch: Batch, change: Callable[[Cond], Cond] = lambda cond: cond) -> Denoise:
        """The denoiser under one condition, which is computed once; a view may `change` it."""
        cond = change(self.condition(batch))
        return lambda x, t: self.denoiser(x, local(self.coupling, t, cond["shapes"]), cond)

    def path(self, batch: Batch) -> Process:
        """The process that a sample walks: the denoiser's, at the pace that the coupling gives to each modality."""
        own, shapes = self.denoiser.process, self.latent_shapes(batch)
        t = torch.full((1,), 0.5)
        return own if local(self.coupling, t, shapes) is t else Coupled(own, self.coupling, shapes)

    def blank(self, batch: Batch, shape: ClipShape | None = None) -> Batch:
        """A batch that names clips and describes them, completed by what the shape says about all of them."""
        b, shape = len(batch["text"]), shape or self.shape
        fps, ids = torch.full((b,), shape.fps), batch.get("id") or [str(i) for i in range(b)]
        everywhere = {name: torch.ones(b, dtype=torch.bool) for name in self.autoencoders} | batch.get("valid", {})
        blank = Batch(text=batch["text"], id=ids, fps=fps, rate=shape.rate, valid=everywhere, shape=shape)
        kept = ("held", "latents", "negative", "motion", "frame", *batch.get("held", {}))  # what is given
        return cast(Batch, {**{key: value for key, value in batch.items() if key in kept}, **blank})

    def condition(self, batch: Batch) -> Cond:
        """The conditioner's routes, plus shape and clock of the latents and which modalities are there."""
        cond = self.learner["conditioner"](batch)
        device = self.device
        return Cond(
            **cond,
            shapes=self.latent_shapes(batch),
            seconds={name: s.to(device) for name, s in self.seconds(batch).items()},
            valid={name: v.to(device) for name, v in batch["valid"].items()},
            chance=batch.get("chance", torch.zeros(len(batch["text"]))).to(device),
        )

    # ---- what a latent is ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Tensor:
        """Clips -> latents (b c ...)."""
        ((name, codec),) = self.codecs.items()
        return latents(batch, name, codec, self.device)

    def decode(self, x: Tensor, batch: Batch, *, keys: Sequence[int]) -> Batch:
        """Latents -> the batch with clips in it."""
        ((name, codec),) = self.codecs.items()
        return cast(Batch, {**batch, name: decode_with(codec, x, keys)})

    def parts(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Anything of a sample's shape -> name: (b *latent)."""
        return dict.fromkeys(self.autoencoders, x)

    def joined(self, parts: dict[str, Tensor]) -> Tensor:
        """The inverse of `parts`."""
        return next(iter(parts.values()))

    def held(self, batch: Batch) -> Tensor | None:
        """Which entries of the samples are given, of their shape; None where nothing is."""
        if not batch.get("held"):
            return None
        held = whole(batch["held"], self.latent_shapes(batch), len(batch["text"]))
        return self.joined(held).to(self.device)

    def latent_shapes(self, batch: Batch = UNSAID) -> dict[str, tuple[int, ...]]:
        """name -> shape of one clip's latent: of the batch's clips, of the shape it asks for, or of the system's."""
        shape = batch.get("shape", batch.get("encoded", self.shape))
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

    def tokens(self, shape: ClipShape) -> int:
        """The latent positions of a clip, of all modalities together."""
        return positions(self.latent_shapes(Batch(shape=shape)))

    def draw_times(self, u: Tensor, batch: Batch = UNSAID) -> Tensor:
        """Uniforms (b,) -> times (b,), by the denoiser's draw and the number of latent positions."""
        return self.denoiser.draw(u, tokens=positions(self.latent_shapes(batch)))


def clips(batch: Batch, name: str) -> Tensor:
    """The clips of one modality (b c ...)."""
    if name not in batch:
        raise UserError(f"The data holds no {name}, which the system learns; it holds {', '.join(batch)}.")
    return cast(Tensor, batch[name])  # type: ignore[literal-required]


def latents(batch: Batch, name: str, codec: Autoencoder, device: torch.device) -> Tensor:
    """The latents of one modality (b c ...): those that the batch brings, or else of its clips."""
    given = batch.get("latents", {}).get(name)
    return codec.encode(clips(batch, name).to(device)) if given is None else given.to(device)


def decode_with(codec: Any, z: Tensor, keys: Sequence[int]) -> Tensor:
    """Decode; codecs that have to invent a phase draw it from the keys."""
    if getattr(codec, "invents_phase", False):
        return cast(Tensor, codec.decode(z, keys=list(keys)))
    return cast(Tensor, codec.decode(z))
