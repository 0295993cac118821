"""Training an autoencoder: rebuild the clip, keep the code near N(0, 1), look right to a tower, fool a critic.

The loss of a clip is a sum of errors over its D numbers, divided by D (Rombach et al. 2022, appendix G; Esser et al.
2021, equations 6 and 7):

    [ sum |x - y|^p  +  perceptual D d(x, y)  +  kl KL(q(z|x) || N(0, 1)) ] / D  +  adversarial share critic

KL is in nats per clip and `kl` weighs it against the *summed* error, whatever the size of a clip; with p = 2 the first
and third term are the evidence lower bound of a Gaussian of variance kl / 2. The critic is a second player with a hinge
loss that stays out until step `start`; its share makes its gradient at the last layer as long as that of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff import noise as draws
from mmdiff.autoencoders.gaussian import Gaussian
from mmdiff.autoencoders.vae import VAE
from mmdiff.batch import Batch, ClipShape
from mmdiff.errors import UserError
from mmdiff.guidance import Guide
from mmdiff.sampling import Sampler
from mmdiff.systems.base import Logs, Report, System

POWERS = {"l1": 1, "l2": 2}
TINY, MOST = 1e-4, 1e4  # of the critic's share (Esser et al. 2021)


class Autoencoding(System):
    """A KL autoencoder of one modality, with what judges it; `perceptual` and `discriminator` may be left out."""

    redraws = True

    def __init__(
        self,
        *,
        autoencoder: VAE,
        shape: ClipShape,
        modality: Literal["video", "audio"] = "video",
        error: Literal["l1", "l2"] = "l1",
        kl: float = 1e-6,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        discriminator: nn.Module | None = None,
        adversarial: float = 0.5,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.autoencoder, self.perceptual, self.discriminator = autoencoder, perceptual, discriminator
        self.shape, self.modality, self.power, self.kl = shape, modality, POWERS[error], kl
        self.perceptual_weight, self.adversarial, self.start = perceptual_weight, adversarial, start
        clip = {"video": (3, shape.frames, *shape.size), "audio": (1, shape.samples)}
        autoencoder.grid(clip[modality])  # fails here, and not at the first step

    def players(self) -> dict[str, nn.Module]:
        critic = {} if self.discriminator is None else {"discriminator": self.discriminator}
        return {"autoencoder": self.autoencoder, **critic}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the codecs in front and below; latents get their statistics in the run that uses them."""
        inside = (self.autoencoder.front, self.autoencoder.base)
        if not all(part is None or part.fitted for part in inside):
            kept = [self._clips(batch)[batch["valid"][self.modality].to(self._device)] for batch in batches]
            self.autoencoder.fit_fixed(torch.cat(kept))

    # ---- losses ----------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, *, seed: int, step: int, player: str = "autoencoder") -> tuple[Tensor, Logs]:
        """Mean over the clips that have the modality; noise is a function of (seed, step, clip)."""
        x = self._held(batch)
        if not len(x):
            return _nothing(self.players()[player]), {}
        keys = draws.keys(seed, "posterior", step, self._ids(batch))
        if player == "discriminator":
            return self._criticise(x, keys) if step >= self.start else (_nothing(self.players()[player]), {})
        y, posterior = self.rebuild(x, keys=keys)
        total, logs = self.errors(x, y, posterior)
        if self.discriminator is not None and step >= self.start:
            fooled = -self.discriminator(y).mean()
            share = self.adversarial * balance(total, fooled, at=self.autoencoder.last)
            total = total + share * fooled
            logs |= {"critic": fooled.detach(), "critic_share": share}
        return total, logs

    def rebuild(self, x: Tensor, *, keys: Sequence[int] | None) -> tuple[Tensor, Gaussian]:
        """What the front made of clips -> (what comes back of it, the posterior); keys None takes the mean."""
        posterior = self.autoencoder.posterior(x)
        if keys is None:
            return self.autoencoder.paint(posterior.mean).float(), posterior
        noise = draws.normal(posterior.mean.shape[1:], keys=keys, device=x.device)
        return self.autoencoder.paint(posterior.sample(noise)).float(), posterior

    def errors(self, x: Tensor, y: Tensor, posterior: Gaussian) -> tuple[Tensor, Logs]:
        """The loss without its critic, per number of a clip; logs: mean error, nats per clip, perceptual distance."""
        error = (x - y).abs().pow(self.power).mean()
        kl = posterior.kl().mean()
        total = error + self.kl * kl / x[0].numel()
        logs = {f"loss/{self.modality}": error.detach(), "kl_nats": kl.detach()}
        if self.perceptual is not None:
            seen = self.perceptual(x, y).mean()
            total, logs["perceptual"] = total + self.perceptual_weight * seen, seen.detach()
        return total, logs

    def _criticise(self, x: Tensor, keys: Sequence[int]) -> tuple[Tensor, Logs]:
        """The critic's own loss: real patches above 1, made ones below -1."""
        critic = cast(nn.Module, self.discriminator)
        with torch.no_grad():
            y, _ = self.rebuild(x, keys=keys)
        real, made = critic(x), critic(y)
        logs = {"real": real.mean().detach(), "made": made.mean().detach()}
        return hinge(real, made), logs

    @torch.no_grad()
    def held_out(self, batch: Batch, *, times: Sequence[float], seed: int) -> dict[str, list[float]]:
        """Squared error of clips decoded from (1 - t) z + t noise, the noise as strong as the codes z of the batch.

        A decoder that a diffusion model is to use has to forgive a small t.
        """
        x, curve = self._held(batch), []
        z = self.autoencoder.posterior(x).mean
        spread = z.transpose(0, 1).flatten(1).std(1).reshape(-1, *[1] * (z.ndim - 2))
        noise = draws.normal(z.shape[1:], keys=draws.keys(seed, "held-out", 0, self._ids(batch)), device=z.device)
        for time in times:
            y = self.autoencoder.paint((1 - time) * z + time * spread * noise)
            curve.append(float((x - y).square().mean()))
        return {self.modality: curve}

    # ---- what it shows ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        *,
        seed: int,
        steps: int = 0,
        sampler: str | Sampler = "",
        guidance: float | Guide = 1.0,
        shape: ClipShape | None = None,
        report: Report | None = None,
    ) -> Batch:
        """Clips as they come back, original on the left (pictures) or first (sound); it cannot draw from text."""
        if self.modality not in batch:
            raise UserError(
                "An autoencoder rebuilds clips and draws none from text. See tools/reconstruct.py, or train a "
                "diffusion model on its latents, as configs/lineage/ldm.yaml does."
            )
        clips = self._clips(batch)
        x = self.autoencoder.front.encode(clips)
        y, _ = self.rebuild(x, keys=None)
        keys = draws.keys(seed, "decode", 0, batch["id"])
        front: Any = self.autoencoder.front
        back = front.decode(y, keys=keys) if self.autoencoder.invents_phase else front.decode(y)
        return cast(Batch, {**batch, self.modality: torch.cat([clips, back], -1)})

    # ---- small things ----------------------------------------------------------------------------------------------

    def _clips(self, batch: Batch) -> Tensor:
        if self.modality not in batch:
            raise UserError(f"The data holds no {self.modality}, which the autoencoder codes.")
        clips: Tensor = batch[self.modality]  # type: ignore[literal-required]
        return clips.to(next(self.autoencoder.parameters()).device)

    def _held(self, batch: Batch) -> Tensor:
        """The clips that have the modality, as the front makes them."""
        with torch.no_grad():
            here = batch["valid"][self.modality]
            return cast(Tensor, self.autoencoder.front.encode(self._clips(batch)[here.to(self._device)]))

    def _ids(self, batch: Batch) -> list[str]:
        return [name for name, here in zip(batch["id"], batch["valid"][self.modality].tolist(), strict=True) if here]

    @property
    def _device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device


def balance(error: Tensor, fooled: Tensor, *, at: Tensor) -> Tensor:
    """|d error / d at| / |d fooled / d at|, without a gradient of its own: the critic's adaptive share."""
    wanted, given = (torch.autograd.grad(loss, at, retain_graph=True)[0].float().norm() for loss in (error, fooled))
    return (wanted / (given + TINY)).clamp(0, MOST).detach()


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Half the mean of what real logits lack to 1 and made ones exceed -1 (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def _nothing(module: nn.Module) -> Tensor:
    """Zero, with a gradient of exactly zero for every parameter."""
    return torch.stack([p.sum() * 0 for p in module.parameters()]).sum()
