"""The diagonal Gaussian: closed forms against sampling, diffusers and the linear model's likelihood."""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from scipy.stats import multivariate_normal
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.gaussian import Gaussian, elbo


def draw(*shape: int, key: int = 0) -> Tensor:
    return noise.normal(shape, keys=[key])[0]


def test_it_is_the_distribution_of_diffusers() -> None:
    moments, z = draw(2, 8, 3, 3) * 2, draw(2, 4, 3, 3, key=1)
    ours, theirs = Gaussian.of(moments), DiagonalGaussianDistribution(moments)
    assert torch.allclose(ours.kl(), theirs.kl(), rtol=1e-5)
    assert torch.allclose(ours.nll(z), theirs.nll(z, dims=[1, 2, 3]), rtol=1e-5)
    assert torch.equal(ours.sample(z), theirs.mean + theirs.std * z)
    assert torch.equal(Gaussian.of(moments * 100).logvar, DiagonalGaussianDistribution(moments * 100).logvar)


def test_divergence_is_what_sampling_finds() -> None:
    posterior = Gaussian(draw(3, 5), 0.5 * draw(3, 5, key=1))
    prior = Gaussian(torch.zeros(3, 5), torch.zeros(3, 5))
    gaps = []
    for key in range(20_000):
        z = posterior.sample(draw(3, 5, key=2 + key))
        gaps.append(prior.nll(z) - posterior.nll(z))
    found = torch.stack(gaps)
    error = found.std(0) / math.sqrt(len(gaps))
    assert ((found.mean(0) - posterior.kl()).abs() < 4 * error).all()
    assert torch.equal(prior.kl(), torch.zeros(3))


def test_the_linear_autoencoder_reaches_the_likelihood_of_probabilistic_pca() -> None:
    """x ~ N(W z + m, s^2): with W from the eigenvectors the exact posterior is diagonal, and the bound is tight.

    Tipping and Bishop 1999, equations 7 and 12; Lucas et al. 2019, section 3.
    """
    size, kept, sigma = 6, 3, 0.4
    mixing = draw(size, size).double()
    covariance = mixing @ mixing.T + 0.1 * torch.eye(size)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values[-kept:], vectors[:, -kept:]
    weight = vectors * (values - sigma**2).sqrt()  # (size kept)
    mean = draw(size, key=3).double()
    x = mean + draw(5, size, key=4).double() @ mixing.T
    inner = weight.T @ weight + sigma**2 * torch.eye(kept)
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-12)
    code = (x - mean) @ weight / inner.diagonal()
    posterior = Gaussian(code, (sigma**2 / inner.diagonal()).log().expand(5, kept))
    # E_q |x - W z - m|^2 is the error of the mean code plus tr(W S W'), which this shift of the mean code adds exactly
    spread = (weight.square().sum(0) * posterior.logvar.exp()[0]).sum()
    bound = elbo(x, mean + code @ weight.T, posterior, sigma=sigma) - spread / (2 * sigma**2)
    truth = multivariate_normal(mean.numpy(), (weight @ weight.T + sigma**2 * torch.eye(size)).numpy())
    assert torch.allclose(bound, torch.from_numpy(truth.logpdf(x.numpy())), atol=1e-10)
    off = Gaussian(code + 0.1, posterior.logvar)
    worse = elbo(x, mean + off.mean @ weight.T, off, sigma=sigma) - spread / (2 * sigma**2)
    assert (worse < bound).all()
