"""The diagonal Gaussian that an encoder answers with (Kingma and Welling 2014, appendices B and C), in nats per clip.

Everything is summed over the numbers of a clip and never averaged over them: beside a squared error that is averaged
over pixels, a summed divergence weighs as many times too much as a clip has pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST, MOST = -30.0, 20.0  # of a log variance


@dataclass(frozen=True)
class Gaussian:
    """N(mean, exp(logvar)) for every clip, both (b c ...)."""

    mean: Tensor
    logvar: Tensor

    @staticmethod
    def of(moments: Tensor) -> Gaussian:
        """From an encoder's answer (b 2c ...), the mean first; log variances are clamped to [-30, 20]."""
        mean, logvar = moments.float().chunk(2, 1)
        return Gaussian(mean, logvar.clamp(LEAST, MOST))

    def sample(self, noise: Tensor) -> Tensor:
        """mean + standard deviation x noise."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL(self || N(0, 1)) of each clip -> (b,) nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)

    def nll(self, z: Tensor) -> Tensor:
        """-log density at z (b c ...), with every constant -> (b,) nats."""
        error = (z - self.mean).square() / self.logvar.exp()
        return 0.5 * (math.log(2 * math.pi) + self.logvar + error).flatten(1).sum(1)


def elbo(x: Tensor, y: Tensor, posterior: Gaussian, *, sigma: float) -> Tensor:
    """The evidence lower bound of clips x where z ~ posterior was decoded to y and x ~ N(y, sigma^2) -> (b,) nats.

    Minus it is a sum of squared errors / (2 sigma^2), the divergence, and a constant: minimising squared error +
    weight x divergence, both summed, is maximum likelihood with sigma^2 = weight / 2.
    """
    likelihood = Gaussian(y, torch.full_like(y, 2 * math.log(sigma)))
    return -likelihood.nll(x) - posterior.kl()
