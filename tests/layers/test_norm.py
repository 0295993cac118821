"""Our RMSNorm is torch's, in value and gradient, though on a CPU it is computed otherwise."""

from __future__ import annotations

import pytest
import torch

from mmdiff import noise
from mmdiff.layers.norm import RMSNorm, rms_norm


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 4, 8)])
def test_values_and_gradients_are_torch_s(shape: tuple[int, ...]) -> None:
    ours, theirs = RMSNorm(shape[-1]), torch.nn.RMSNorm(shape[-1], eps=1e-6)
    weight, x, up = (noise.normal(s, keys=[i])[0] for i, s in enumerate([shape[-1:], shape, shape]))
    grads = []
    for norm in (ours, theirs):
        norm.weight.data.copy_(weight)
        leaf = (3 * x).requires_grad_()
        y = norm(leaf)
        y.backward(up)
        grads.append((y.detach(), leaf.grad, norm.weight.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_a_weight_the_mean_square_is_one() -> None:
    x = 100 * noise.normal((7, 16), keys=[0])[0]
    torch.testing.assert_close(rms_norm(x).square().mean(-1), torch.ones(7))
    assert torch.equal(rms_norm(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_bfloat16_stays_and_keeps_float32_statistics() -> None:
    x = noise.normal((64, 512), keys=[0])[0].bfloat16()
    y = RMSNorm(512)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), rms_norm(x.float()), atol=0.03, rtol=0.01)
