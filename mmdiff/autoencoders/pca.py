"""Patch PCA: a training-free video codec, and the tempered principal components that `Mel` shares with it.

The one idea: cut the clip into patches and keep the directions in which patches vary most; of all linear codes with so
many numbers none has a smaller squared error (Pearson 1901; Hotelling 1933), and no gradient step is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mmdiff.errors import UserError


class Components(nn.Module):
    """The leading principal components of vectors, scaled to a mean variance of exactly 1: (... size) <-> (... kept).

    Component i, of variance lambda_i in the data, is given a standard deviation proportional to
    lambda_i^((1 - whiten) / 2): whiten=1 makes every one unit variance, whiten=0 only rotates. Directions that hold
    less than FLAT of the largest variance are not amplified further: they are rounding, not data.
    """

    FLAT = 1e-7
    mean: Tensor  # (size)
    basis: Tensor  # (size kept), orthonormal columns
    scale: Tensor  # (kept)
    ready: Tensor  # () bool

    def __init__(self, *, size: int, kept: int, whiten: float = 1.0) -> None:
        super().__init__()
        if not 1 <= kept <= size:
            raise UserError(f"components is {kept}, but a patch holds {size} numbers: choose 1 to {size}.")
        if not 0 <= whiten <= 1:
            raise UserError(f"whiten is {whiten}: choose a number from 0 (only rotate) to 1 (unit variance each).")
        self.whiten = whiten
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, kept))
        self.register_buffer("scale", torch.ones(kept))
        self.register_buffer("ready", torch.tensor(False))
        self._known = False

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called or fitted buffers were loaded; asks the device only until the answer is yes."""
        self._known = self._known or bool(self.ready)
        return self._known

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Eigenvectors of the covariance of the rows of all chunks, each (n size), in float64 on the CPU."""
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for chunk in chunks:
            rows = chunk.detach().to("cpu", torch.float64)  # (n size)
            count, total, square = count + len(rows), total + rows.sum(0), square + rows.T @ rows
        if count < 2:
            raise UserError(f"Cannot fit principal components to {count} patches: give at least two.")
        mean = total / count
        values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))  # ascending
        kept = self.scale.numel()
        self._store(mean, values.flip(0)[:kept].clamp(min=0), vectors.flip(1)[:, :kept])

    def _store(self, mean: Tensor, values: Tensor, vectors: Tensor) -> None:
        """Fix the sign of every direction (its largest entry is positive) and the scales; write the buffers."""
        if not values[0] > 1e-12:
            raise UserError("Cannot fit principal components: all patches are equal. Is the data blank or silent?")
        peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # (1 kept)
        tempered = values.clamp(min=self.FLAT * float(values[0])) ** (-self.whiten / 2)
        self.mean.copy_(mean)
        self.basis.copy_(vectors * peak.sign())
        self.scale.copy_(tempered / (values * tempered.square()).mean().sqrt())
        self.ready.fill_(True)

    def encode(self, x: Tensor) -> Tensor:
        """(... size) -> (... kept), in float32 whatever the autocast: this is data, not a layer."""
        self._require()
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() - self.mean) @ (self.basis * self.scale)

    def decode(self, z: Tensor) -> Tensor:
        """(... kept) -> (... size), the least-squares inverse of `encode`."""
        self._require()
        with torch.autocast(z.device.type, enabled=False):
            return self.mean + z.float() @ (self.basis / self.scale).T

    def _require(self) -> None:
        if not self.fitted:
            raise UserError("This codec was not fitted: call fit(clips) first, or load the buffers stored with a run.")


class PCA(nn.Module):
    """Video codec: each patch of pt frames, ph rows and pw columns becomes `components` numbers of mean variance 1.

    (b 3 t h w) in [-1, 1] <-> (b components t/pt h/ph w/pw). Fitted from data; its buffers are saved with the run.
    """

    def __init__(self, *, patch: Sequence[int], components: int, whiten: float = 1.0) -> None:
        super().__init__()
        if len(patch) != 3 or min(patch) < 1:
            raise UserError(f"patch is {list(patch)}: give three positive sizes, [frames, rows, columns].")
        self.patch = tuple(int(p) for p in patch)
        self.channels = components
        size = 3 * self.patch[0] * self.patch[1] * self.patch[2]
        self.components = Components(size=size, kept=components, whiten=whiten)

    @property
    def fitted(self) -> bool:
        """Whether the codec can be used."""
        return self.components.fitted

    def fit(self, x: Tensor) -> None:
        """Fit to clips (b 3 t h w); the result is a function of the clips alone."""
        self.components.fit(self._patches(chunk).flatten(0, -2) for chunk in x.split(64))

    def encode(self, x: Tensor) -> Tensor:
        """Clips (b 3 t h w) -> latents (b components t/pt h/ph w/pw)."""
        return rearrange(self.components.encode(self._patches(x)), "b t h w k -> b k t h w")

    def decode(self, z: Tensor) -> Tensor:
        """Latents (b components t h w) -> clips (b 3 t*pt h*ph w*pw), clamped to [-1, 1]."""
        pt, ph, pw = self.patch
        x = self.components.decode(rearrange(z, "b k t h w -> b t h w k"))
        axes = "b t h w (c pt ph pw) -> b c (t pt) (h ph) (w pw)"
        return rearrange(x, axes, c=3, pt=pt, ph=ph, pw=pw).clamp(-1, 1)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A clip's shape (3 t h w) -> its latent's shape (components t/pt h/ph w/pw)."""
        channels, *sizes = shape
        if channels != 3 or len(sizes) != 3:
            raise UserError(f"PCA codes clips of shape (3 frames rows columns), not {tuple(shape)}.")
        for axis, n, p in zip(("frames", "rows", "columns"), sizes, self.patch, strict=True):
            if n % p:
                raise UserError(
                    f"A clip of {n} {axis} cannot be cut into patches of {p} {axis}: {n} = {n // p} x {p} + {n % p}."
                )
        return (self.channels, *(n // p for n, p in zip(sizes, self.patch, strict=True)))

    def seconds(self, steps: int, *, rate: float) -> Tensor:
        """Midpoints in seconds of the latent time steps, at `rate` frames per second -> (steps,)."""
        return (torch.arange(steps) + 0.5) * (self.patch[0] / rate)

    def _patches(self, x: Tensor) -> Tensor:
        self.grid(x.shape[1:])
        pt, ph, pw = self.patch
        axes = "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)"
        return rearrange(x, axes, pt=pt, ph=ph, pw=pw)
