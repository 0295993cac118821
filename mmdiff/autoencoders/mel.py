"""Sound as a log-mel picture, and back by fast Griffin-Lim: a training-free codec whose latent steps are seconds-exact.

The one idea: frame f is centred on the samples [f hop, (f + 1) hop), so `group` frames make the latent step that covers
exactly those samples, and nothing drifts between picture and sound. The way back is a non-negative inversion of the mel
filterbank by multiplicative updates (Lee and Seung 2001) followed by Griffin-Lim with momentum (Perraudin, Balazs and
Sondergaard 2013, algorithm 2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.autoencoders.pca import Components
from mmdiff.errors import UserError

MOMENTUM = 0.99  # Perraudin et al. 2013, section 4
TINY = 1e-8


class Mel(nn.Module):
    """Audio codec: `group` log-mel frames become `components` numbers of mean variance 1 (see `Components`).

    (b 1 n) in [-1, 1] <-> (b components n/(hop group)). A full-scale sine stands at 0 dB, and amplitudes well under
    `floor_db` are silence: the picture is log(1 + mel / floor). components=None keeps every direction.
    """

    invents_phase = True  # decode takes keys
    hann: Tensor  # (window)
    filters: Tensor  # (bands bins)
    inverse: Tensor  # (bins bands)

    def __init__(
        self,
        *,
        rate: int,
        hop: int,
        window: int,
        bands: int,
        group: int = 1,
        components: int | None = None,
        whiten: float = 1.0,
        floor_db: float = -60.0,
        iterations: int = 32,
    ) -> None:
        super().__init__()
        if window < 2 * hop or (window - hop) % 2:
            raise UserError(f"window {window} must be at least twice hop {hop}, and differ from it by an even number.")
        self.rate, self.hop, self.window, self.bands, self.group = rate, hop, window, bands, group
        self.floor, self.iterations = 10 ** (floor_db / 20), iterations
        self.channels = bands * group if components is None else components
        self.components = Components(size=bands * group, kept=self.channels, whiten=whiten)
        self.size = 1 << (window - 1).bit_length()  # of the FFT
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", _filters(self.size // 2 + 1, bands=bands, rate=rate), persistent=False)
        self.ceiling = math.log1p(2 * float(self.filters.sum(1).max()) / self.floor)  # no clip in [-1, 1] exceeds it
        self.register_buffer("inverse", torch.linalg.pinv(self.filters.double()).float(), persistent=False)

    @property
    def fitted(self) -> bool:
        """Whether the codec can be used."""
        return self.components.fitted

    def fit(self, x: Tensor) -> None:
        """Fit to clips (b 1 n)."""
        self.components.fit(self._patches(chunk.to(self.hann.device)).flatten(0, -2) for chunk in x.split(64))

    def encode(self, x: Tensor) -> Tensor:
        """Clips (b 1 n) -> latents (b components n/(hop group))."""
        return rearrange(self.components.encode(self._patches(x)), "b t k -> b k t")

    @torch.no_grad()
    def decode(self, z: Tensor, *, keys: Sequence[int]) -> Tensor:
        """Latents (b components t) -> clips (b 1 t*group*hop), clamped to [-1, 1]; one key a clip seeds its phase."""
        with torch.autocast(z.device.type, enabled=False):
            picture = self.components.decode(rearrange(z, "b k t -> b t k"))
            picture = rearrange(picture, "b t (g m) -> b m (t g)", g=self.group)
            magnitude = self._unmel(self.floor * picture.clamp(0, self.ceiling).expm1())  # (b bins frames)
            return self._griffin_lim(magnitude, keys)[:, None].clamp(-1, 1)  # (b 1 n)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A clip's shape (1 n) -> its latent's shape (components t)."""
        step = self.hop * self.group
        if len(shape) != 2 or shape[0] != 1 or shape[1] % step or not shape[1]:
            raise UserError(
                f"Mel codes clips of shape (1 n) with n a multiple of hop x group = {step}, not {tuple(shape)}."
            )
        return (self.channels, shape[1] // step)

    def seconds(self, steps: int, *, rate: float) -> Tensor:
        """Midpoints in seconds of the latent time steps, at `rate` samples per second -> (steps,)."""
        return (torch.arange(steps) + 0.5) * (self.hop * self.group / rate)

    def log_mel(self, x: Tensor) -> Tensor:
        """Clips (b 1 n) -> log(1 + mel amplitude / floor) (b bands n/hop)."""
        with torch.autocast(x.device.type, enabled=False):
            magnitude = self._stft(x[:, 0].float()).abs()  # (b bins frames)
            return (self.filters @ magnitude / self.floor).log1p()

    def _patches(self, x: Tensor) -> Tensor:
        self.grid(x.shape[1:])
        return rearrange(self.log_mel(x), "b m (t g) -> b t (g m)", g=self.group)

    def _stft(self, x: Tensor) -> Tensor:
        """(b n) -> (b bins n/hop), amplitude 1 for a full-scale sine; beyond its ends the clip is silent."""
        side = (self.window - self.hop) // 2
        frames = nn.functional.pad(x, (side, side)).unfold(-1, self.window, self.hop)  # (b frames window)
        return torch.fft.rfft(frames * self.hann, self.size).mT * (2 / self.hann.sum())

    def _istft(self, spectrum: Tensor) -> Tensor:
        """(b bins frames) -> (b n), the clip whose `_stft` is nearest in squared error (Griffin and Lim 1984)."""
        frames = torch.fft.irfft(spectrum.mT, self.size)[..., : self.window]  # (b frames window)
        weight = self.hann.square().expand(1, *frames.shape[1:])
        clip = self._overlap(frames * self.hann) / self._overlap(weight).clamp(min=TINY)
        return clip * (self.hann.sum() / 2)

    def _overlap(self, frames: Tensor) -> Tensor:
        """(b frames window) -> (b n): add the frames at their places, cut the two sides."""
        length = (frames.shape[1] - 1) * self.hop + self.window
        side = (self.window - self.hop) // 2
        clip = nn.functional.fold(frames.mT, (1, length), (1, self.window), stride=(1, self.hop))
        return clip[:, 0, 0, side : length - side]

    def _unmel(self, mel: Tensor, updates: int = 16) -> Tensor:
        """Non-negative (b bands frames) -> (b bins frames) with filters @ it near mel: multiplicative updates."""
        found = (self.inverse @ mel).clamp(min=TINY)
        wanted, gram = self.filters.T @ mel, self.filters.T @ self.filters
        for _ in range(updates):
            found = found * wanted / (gram @ found).clamp(min=TINY)
        return found

    def _griffin_lim(self, magnitude: Tensor, keys: Sequence[int]) -> Tensor:
        """Magnitudes (b bins frames) -> clips (b n)."""
        real, imaginary = noise.normal((2, *magnitude.shape[1:]), keys=keys, device=magnitude.device).unbind(1)
        spectrum, before = torch.complex(real, imaginary), torch.zeros(())
        for _ in range(self.iterations):
            projected = self._stft(self._istft(magnitude * spectrum / spectrum.abs().clamp(min=TINY)))
            spectrum, before = projected + MOMENTUM * (projected - before), projected
        return self._istft(magnitude * spectrum / spectrum.abs().clamp(min=TINY))


def _filters(bins: int, *, bands: int, rate: int) -> Tensor:
    """Triangular mel filters (bands bins), HTK scale, from 0 Hz to the Nyquist frequency."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings(), torch.device("cpu"):  # they are values, also of a system whose weights are none
        warnings.simplefilter("ignore")  # of empty filters, which are an error here
        filters = melscale_fbanks(bins, 0.0, rate / 2, bands, rate).T.contiguous()
    if empty := int((filters.sum(1) == 0).sum()):
        raise UserError(f"{empty} of {bands} mel bands hold no frequency bin: take fewer bands or a longer window.")
    return filters
