"""The learned codec: a convolutional autoencoder whose code is a Gaussian held near N(0, 1) (Rombach et al. 2022).

It stands behind another codec, `front`: behind `Pixels` it codes pictures, clips (causal in time, so that latent k
knows nothing of later frames) or waves, and behind `Mel` log-mel frames. `systems/autoencoding.py` trains it on
`posterior` and `paint`; everyone else sees `encode` and `decode`, whose latents are the posterior's means, standardised
channel by channel with statistics that `fit` takes from data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdiff.autoencoders.coder import Decoder, Encoder, Plan
from mmdiff.autoencoders.gaussian import Gaussian
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.errors import UserError
from mmdiff.layers.conv import Conv, Past

QUIET = 0.05  # standard deviations of the noise in a code that begins as a base's


class VAE(nn.Module):
    """KL autoencoder: clips (b c t h w) or (b c n) <-> latents (b latent t' h' w') or (b latent n').

    `base`, a linear codec with latents of the same shape, is what it begins as: its numbers and its pictures are added
    to those of the networks, whose last layers are zero at first, so that no step is spent on what a fit can do.

    Lengths are divided by `plan.factor`. With plan.first = f > 0 the first latent step covers f frames (1: the first
    frame alone, so that a picture is a clip) and each further one `factor[0]`: clips have f + k factor[0] frames.
    """

    mean: Tensor  # (latent)
    scale: Tensor  # (latent), standard deviations
    ready: Tensor  # () bool

    def __init__(
        self, *, channels: int, latent: int, plan: Plan, front: nn.Module | None = None, base: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.channels, self.inner, self.plan = latent, channels, plan
        self.front: Any = front or Pixels(channels=channels)
        self.encoder, self.decoder = Encoder(channels, 2 * latent, plan), Decoder(latent, channels, plan)
        self.after = Conv(2 * latent, 2 * latent, kernel=(1, 1, 1))
        self.before = Conv(latent, latent, kernel=(1, 1, 1))
        self.base: Any = base
        if base is not None:
            self._begin_as_base()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))
        self.register_buffer("ready", torch.tensor(False))
        self._known = False

    # ---- what is trained -------------------------------------------------------------------------------------------

    def posterior(self, x: Tensor, past: Past | None = None) -> Gaussian:
        """What the front made of clips (b c ...) -> q(z | x), its numbers not standardised."""
        q = Gaussian.of(_flat(self.after(self.encoder(_grid(x), past)), x.ndim))
        return q if self.base is None else Gaussian(q.mean + self.base.encode(x), q.logvar)

    def paint(self, z: Tensor, past: Past | None = None) -> Tensor:
        """Latents as the posterior has them -> what the front takes to be clips (b c ...), not clamped."""
        y = _flat(self.decoder(self.before(_grid(z)), past), z.ndim)
        return y if self.base is None else y + self.base.decode(z)

    @property
    def last(self) -> Tensor:
        """The weight of the decoder's last layer, at which the losses of two players are compared."""
        return self.decoder.leave.weight

    # ---- what every codec does -------------------------------------------------------------------------------------

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called or statistics were loaded; asks the device only until the answer is yes."""
        self._known = self._known or bool(self.ready)
        return self._known

    @property
    def invents_phase(self) -> bool:
        """Whether decode takes keys."""
        return getattr(self.front, "invents_phase", False)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Mean and standard deviation of each latent channel over clips (b c ...), by the weights as they are now."""
        self.fit_fixed(x)
        device = next(self.parameters()).device
        z = torch.cat([self._mean(chunk.to(device)).cpu().double() for chunk in x.split(32)])
        rows = z.transpose(0, 1).flatten(1)  # (latent n)
        self.mean.copy_(rows.mean(1))
        self.scale.copy_(rows.std(1, correction=0).clamp(min=1e-6))
        self.ready.fill_(True)

    @torch.no_grad()
    def fit_fixed(self, x: Tensor) -> None:
        """Fit what is not trained, the front and the base, to clips (b c ...)."""
        if not self.front.fitted:
            self.front.fit(x)
        if self.base is not None and not self.base.fitted:
            self.base.fit(torch.cat([self.front.encode(chunk) for chunk in x.split(32)]))

    def encode(self, x: Tensor) -> Tensor:
        """Clips -> latents, the means of the posterior, each channel of mean 0 and variance 1 over the fitted clips."""
        return self.standardise(self._mean(x))

    def decode(self, z: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        """Latents -> clips in [-1, 1]; a front that invents a phase draws it from the keys, one a clip."""
        y = self.paint(self.restore(z)).float()
        return cast(Tensor, self.front.decode(y, keys=keys) if self.invents_phase else self.front.decode(y))

    def standardise(self, z: Tensor) -> Tensor:
        """From the posterior's numbers to unit variance."""
        self._require()
        return (z - self._row(self.mean, z)) / self._row(self.scale, z)

    def restore(self, z: Tensor) -> Tensor:
        """The way back."""
        self._require()
        return z * self._row(self.scale, z) + self._row(self.mean, z)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A clip's shape -> its latent's shape."""
        channels, *sizes = self.front.grid(shape)
        if channels != self.inner:
            raise UserError(f"The autoencoder was built for {self.inner} channels, not for clips of {tuple(shape)}.")
        first, factor = self.plan.first, self.plan.factor
        whole = [sizes[0] - (first or factor[0]) + factor[0], *sizes[1:]]  # as if the first step were a full one
        for axis, n, f, size in zip(("frames", "rows", "columns"), whole, factor, sizes):
            if n % f or n < f:
                asked = f"{first} + a multiple of {f}" if first and axis == "frames" else f"a multiple of {f}"
                raise UserError(f"The autoencoder codes clips whose number of {axis} is {asked}, not {size}.")
        return (self.channels, *(n // f for n, f in zip(whole, factor)))

    def seconds(self, steps: int, *, rate: float) -> Tensor:
        """Midpoints in seconds of the latent time steps, from those of the frames they cover -> (steps,)."""
        factor = self.plan.factor[0]
        first = self.plan.first or factor
        at = self.front.seconds(first + (steps - 1) * factor, rate=rate)
        return torch.cat([at[:first].mean(0, keepdim=True), at[first:].reshape(-1, factor).mean(1)])

    # ---- clips longer than memory ----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Consecutive chunks of a clip -> chunks of its latent, equal to encoding the whole.

        Time must be causal. The first chunk has first + k factor[0] frames, each further one a multiple of factor[0].
        """
        past = self._past()
        for chunk in chunks:
            yield self.standardise(self.posterior(self.front.encode(chunk), past).mean)

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Consecutive chunks of a latent -> chunks of the clip, equal to decoding the whole. Time must be causal."""
        past = self._past()
        for chunk in chunks:
            yield self.front.decode(self.paint(self.restore(chunk), past).float())

    @torch.no_grad()
    def _begin_as_base(self) -> None:
        """Zero the last layers; a code then has QUIET standard deviations of noise."""
        if self.plan.first not in (0, self.plan.factor[0]):
            raise UserError(f"A base codes whole steps: plan.first must be 0 or {self.plan.factor[0]}.")
        for layer in (self.after, self.decoder.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.after.bias[self.channels :], 2 * math.log(QUIET))

    def _past(self) -> Past:
        if not self.plan.first:
            raise UserError("Only an autoencoder that is causal in time (plan.first > 0) can go on from a chunk.")
        return {}

    def _mean(self, x: Tensor) -> Tensor:
        return self.posterior(self.front.encode(x)).mean

    def _row(self, values: Tensor, z: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (z.ndim - 2))

    def _require(self) -> None:
        if not self.fitted:
            raise UserError("This autoencoder has no statistics of its latents: call fit(clips) after training it.")


def _grid(x: Tensor) -> Tensor:
    """A wave (b c n) is a clip of one pixel (b c n 1 1)."""
    return x[..., None, None] if x.ndim == 3 else x


def _flat(x: Tensor, ndim: int) -> Tensor:
    return x[..., 0, 0] if ndim == 3 else x
