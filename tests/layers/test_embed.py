"""The sinusoid is the one of diffusers, and patches lose nothing."""

from __future__ import annotations

import torch

from mmdiff import noise
from mmdiff.layers.embed import TimeEmbedding, patchify, sinusoid, unpatchify


def test_the_sinusoid_is_diffusers() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.cat([torch.tensor([0.0, 1.0]), noise.uniform(keys=list(range(6)))])
    theirs = get_timestep_embedding(1000 * t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoid(t, 64), theirs, atol=1e-4, rtol=1e-4)


def test_time_may_have_any_shape() -> None:
    embed, t = TimeEmbedding(12), noise.uniform(keys=list(range(6)))
    torch.testing.assert_close(embed(t).view(2, 3, 12), embed(t.view(2, 3)))


def test_patches_come_back() -> None:
    x = noise.normal((3, 4, 6, 8), keys=[0, 1])
    for patch in ((1, 1, 1), (2, 3, 4), (4, 6, 8)):
        tokens = patchify(x, patch)
        assert torch.equal(unpatchify(tokens, patch), x)
        assert tokens.shape == (2, 4 // patch[0], 6 // patch[1], 8 // patch[2], 3 * patch[0] * patch[1] * patch[2])


def test_a_token_is_its_patch() -> None:
    x = noise.normal((3, 4, 6, 8), keys=[0])
    token = patchify(x, (2, 3, 4))[0, 1, 1, 0]
    assert torch.equal(token, x[0, :, 2:4, 3:6, 0:4].permute(1, 2, 3, 0).flatten())
