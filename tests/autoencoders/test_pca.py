"""The patch codec is the best linear one: checked against an SVD that shares no code with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.pca import PCA, Components
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.errors import UserError

PATCH = [2, 4, 4]
SIZE = 3 * 2 * 4 * 4


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """Smooth noise in [-1, 1], (24 3 4 8 8): neighbours correlate, so that components differ in variance."""
    x = noise.normal((3, 4, 10, 10), keys=list(range(24)))
    return torch.nn.functional.avg_pool3d(x, (1, 3, 3), stride=1).tanh()


def cut(x: Tensor) -> Tensor:
    """Patches by slicing alone -> (n SIZE) float64."""
    found = []
    for t in range(0, x.shape[2], 2):
        for h in range(0, x.shape[3], 4):
            for w in range(0, x.shape[4], 4):
                found.append(x[:, :, t : t + 2, h : h + 4, w : w + 4].flatten(1))
    return torch.cat(found).double()


def spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances in falling order and directions as rows, from the centred data matrix."""
    rows = cut(x)
    _, singular, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return singular.square() / len(rows), directions


def fitted(x: Tensor, *, components: int = 16, whiten: float = 1.0) -> PCA:
    codec = PCA(patch=PATCH, components=components, whiten=whiten)
    codec.fit(x)
    return codec


def variances(z: Tensor) -> Tensor:
    return z.double().transpose(0, 1).flatten(1).var(1, correction=0)


def test_directions_and_variances_are_those_of_the_svd(clips: Tensor) -> None:
    values, directions = spectrum(clips)
    codec = fitted(clips, whiten=0.0)
    overlap = (directions[:16] @ codec.components.basis.double()).diagonal().abs()
    assert torch.allclose(overlap, torch.ones_like(overlap), atol=1e-5)
    assert torch.allclose(variances(codec.encode(clips)), values[:16] / values[:16].mean(), rtol=1e-4)


@pytest.mark.parametrize("components", [1, 7, 16, SIZE])
def test_error_is_the_discarded_variance(clips: Tensor, components: int) -> None:
    values, _ = spectrum(clips)
    codec = fitted(clips, components=components)
    patches = codec.components.decode(codec.components.encode(cut(clips).float()))
    error = (patches.double() - cut(clips)).square().sum(1).mean()
    assert torch.allclose(error, values[components:].sum(), atol=1e-6, rtol=1e-4)


def test_every_component_kept_loses_nothing(clips: Tensor) -> None:
    codec = fitted(clips, components=SIZE, whiten=0.5)
    assert torch.allclose(codec.decode(codec.encode(clips)), clips, atol=1e-5)


@pytest.mark.parametrize("whiten", [0.0, 0.3, 1.0])
def test_variance_follows_the_temper_and_its_mean_is_one(clips: Tensor, whiten: float) -> None:
    values, _ = spectrum(clips)
    found = variances(fitted(clips, whiten=whiten).encode(clips))
    want = values[:16] ** (1 - whiten)
    assert torch.allclose(found, want / want.mean(), rtol=1e-3)
    assert torch.allclose(found.mean(), torch.ones_like(found.mean()), rtol=1e-4)


def test_unwhitened_latents_keep_distances_up_to_one_factor(clips: Tensor) -> None:
    codec = fitted(clips, components=SIZE, whiten=0.0)
    far = torch.cdist(codec.encode(clips).flatten(1), codec.encode(clips).flatten(1))
    near = torch.cdist(clips.flatten(1), clips.flatten(1))
    ratio = (far / near)[near > 1]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)


def test_latent_axes_are_space_and_time(clips: Tensor) -> None:
    codec = fitted(clips)
    changed = clips.clone()
    changed[:, :, 2:4, 4:8, 0:4] *= -1
    moved = (codec.encode(changed) - codec.encode(clips)).abs().amax((0, 1)) > 1e-6
    assert moved.nonzero().tolist() == [[1, 1, 0]]
    assert codec.encode(clips).shape[1:] == codec.grid(clips.shape[1:]) == (16, 2, 2, 2)


def test_fit_does_not_depend_on_the_order_of_clips_and_has_a_sign(clips: Tensor) -> None:
    first, second = fitted(clips), fitted(clips.flip(0))
    assert torch.allclose(first.components.basis, second.components.basis, atol=1e-4)
    peaks = first.components.basis.gather(0, first.components.basis.abs().argmax(0, keepdim=True))
    assert (peaks > 0).all()
    assert torch.equal(first.components.basis, fitted(clips).components.basis)


def test_buffers_restore_the_codec(clips: Tensor) -> None:
    codec, other = fitted(clips), PCA(patch=PATCH, components=16)
    assert codec.fitted and not other.fitted
    other.load_state_dict(codec.state_dict())
    assert other.fitted and torch.equal(other.encode(clips), codec.encode(clips))


def test_nearly_flat_directions_stay_finite() -> None:
    rows = noise.normal((8,), keys=list(range(100))) * torch.tensor([1, 0.5, 0.2, 0.1, 0, 0, 0, 0])
    part = Components(size=8, kept=8)
    part.fit([rows])
    z = part.encode(rows)
    assert z.isfinite().all() and z.var(0, correction=0)[4:].max() < 0.1
    assert torch.allclose(part.decode(z), rows, atol=1e-5)


def test_autocast_does_not_round(clips: Tensor) -> None:
    codec = fitted(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = codec.encode(clips)
    assert torch.equal(z, codec.encode(clips))


def test_decode_is_clamped_and_seconds_are_midpoints(clips: Tensor) -> None:
    codec = fitted(clips)
    assert codec.decode(100 * codec.encode(clips)).abs().max() <= 1
    assert codec.seconds(4, rate=8.0).tolist() == [0.125, 0.375, 0.625, 0.875]


def test_errors_name_the_numbers(clips: Tensor) -> None:
    with pytest.raises(UserError, match="fit"):
        PCA(patch=PATCH, components=4).encode(clips)
    with pytest.raises(UserError, match="5 frames.*patches of 2 frames"):
        fitted(clips).grid((3, 5, 8, 8))
    with pytest.raises(UserError, match="97.*96"):
        PCA(patch=PATCH, components=97)
    with pytest.raises(UserError, match="whiten"):
        PCA(patch=PATCH, components=4, whiten=2.0)
    with pytest.raises(UserError, match="three"):
        PCA(patch=[2, 4], components=4)
    with pytest.raises(UserError, match="blank"):
        fitted(torch.zeros(4, 3, 2, 4, 4))


def test_pixels_are_the_identity(clips: Tensor) -> None:
    codec = Pixels()
    assert codec.fitted and codec.encode(clips) is clips and torch.equal(codec.decode(clips), clips)
    assert codec.grid((3, 4, 8, 8)) == (3, 4, 8, 8)
    assert codec.seconds(2, rate=4.0).tolist() == [0.125, 0.375]
    with pytest.raises(UserError, match="3 channels"):
        codec.grid((1, 4, 8, 8))
