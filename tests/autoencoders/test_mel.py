"""What a listener would notice after a round trip: when things are struck, and at which pitch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.mel import Mel
from mmdiff.errors import UserError
from mmdiff.world.listen import read_strikes
from mmdiff.world.scene import sample_scene
from mmdiff.world.sound import synthesize
from mmdiff.world.things import TIERS

RATE, LENGTH = 8000, 16000
BELL, WOOD, CLICK = ((1, 2.76, 5.4), 0.16), ((1, 1.58, 2.24), 0.035), ((1, 2, 3), 0.07)


def strike(pitch: float, times: list[float], kind: tuple[tuple[float, ...], float]) -> Tensor:
    """Decaying partials from every time on, with an attack of 2 ms -> (1 LENGTH)."""
    clip, t = torch.zeros(LENGTH, dtype=torch.float64), torch.arange(LENGTH, dtype=torch.float64) / RATE
    for start in times:
        d = (t - start).clamp(min=0)
        for i, ratio in enumerate(kind[0], start=1):
            wave = (2 * math.pi * pitch * ratio * d).sin() * (pitch * ratio < RATE / 2)
            clip += 0.3 / i * wave * (d / 0.002).clamp(max=1) * (-d / kind[1]).exp()
    return clip.float()[None]


def scene(i: int) -> tuple[Tensor, float, list[float]]:
    """The i-th clip (1 LENGTH), its pitch in Hz and its three strikes in seconds."""
    draws = noise.uniform(keys=[noise.key(i, n) for n in range(4)]).tolist()
    pitch, times = 300 * 4 ** draws[0], [0.1 + 0.4 * draws[1], 0.7 + 0.4 * draws[2], 1.3 + 0.4 * draws[3]]
    return strike(pitch, times, (BELL, WOOD, CLICK)[i % 3]), pitch, times


def build(*, components: int | None = 64, whiten: float = 1.0, group: int = 5, iterations: int = 32) -> Mel:
    return Mel(
        rate=RATE,
        hop=100,
        window=320,
        bands=80,
        group=group,
        components=components,
        whiten=whiten,
        iterations=iterations,
    )


@pytest.fixture(scope="module")
def codec() -> Mel:
    codec = build()
    codec.fit(torch.stack([scene(i)[0] for i in range(100, 196)]))
    return codec


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.stack([scene(i)[0] for i in range(18)])


def onset(clip: Tensor, near: float) -> float:
    """When a 2 ms loudness first passes half of its peak around `near`, in seconds."""
    loudness = torch.nn.functional.avg_pool1d(clip.square()[None], 17, 1, 8)[0].sqrt()
    start = round((near - 0.08) * RATE)
    part = loudness[start : round((near + 0.1) * RATE)]
    return (start + int((part > part.max() / 2).nonzero()[0])) / RATE


def pitch(clip: Tensor, near: float, after: float) -> float:
    """The strongest frequency within 3 semitones of `near` in the 0.2 s that follow a strike, in Hz."""
    start = round((after + 0.02) * RATE)
    part = clip[start : start + 1600] * torch.hann_window(1600)
    power = torch.fft.rfft(part, 1 << 16).abs()
    frequency = torch.arange(len(power)) * RATE / (1 << 16)
    return float(frequency[(power * ((frequency / near).log2().abs() < 0.25)).argmax()])


def errors(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Onset errors in ms and pitch errors in cents of every strike."""
    times, cents = [], []
    for i in range(len(before)):
        _, base, strikes = scene(i)
        for t in strikes:
            times.append(1000 * abs(onset(after[i, 0], t) - onset(before[i, 0], t)))
            cents.append(1200 * abs(math.log2(pitch(after[i, 0], base, t) / pitch(before[i, 0], base, t))))
    return torch.tensor(times), torch.tensor(cents)


def test_round_trip_keeps_onsets_and_pitch(clips: Tensor) -> None:
    codec = build(components=None)
    codec.fit(clips)
    times, cents = errors(clips, codec.decode(codec.encode(clips), keys=list(range(18))))
    assert times.max() < 5 and cents.median() < 10


def test_64_components_of_400_keep_them_too(codec: Mel, clips: Tensor) -> None:
    times, cents = errors(clips, codec.decode(codec.encode(clips), keys=list(range(18))))
    assert times.median() < 2 and times.quantile(0.9) < 5 and cents.median() < 10


def test_the_world_is_heard_the_same_after_a_round_trip() -> None:
    """Every strike is found again within 5 ms, with its timbre and size."""
    tier = TIERS["cpu"]
    scenes = [
        sample_scene(seed=0, index=i, split=split, tier=tier, binding="by_shape")
        for split, n in (("train", 160), ("val", 24))
        for i in range(n)
    ]
    sounds = torch.stack([torch.from_numpy(synthesize(scene, tier)) for scene in scenes])[:, None]
    codec = build()
    codec.fit(sounds[:160])
    after = codec.decode(codec.encode(sounds[160:]), keys=list(range(24)))
    struck = 0
    for x, y in zip(sounds[160:], after, strict=True):
        want, got = read_strikes(x.numpy(), tier.rate), read_strikes(y.numpy(), tier.rate)
        assert [(s.timbre, s.size) for s in got] == [(s.timbre, s.size) for s in want]
        assert all(abs(a.t - b.t) < 0.005 for a, b in zip(got, want, strict=True))
        struck += len(want)
    assert struck > 24


def test_latents_have_unit_variance(codec: Mel) -> None:
    z = codec.encode(torch.stack([scene(i)[0] for i in range(100, 196)]))
    spread = z.transpose(0, 1).flatten(1).var(1, correction=0)
    assert torch.allclose(spread, torch.ones(64), rtol=1e-3)


def test_a_step_covers_its_own_samples(codec: Mel) -> None:
    """An impulse in the middle of 500 samples is heard in that step, and a mirrored clip has a mirrored picture."""
    assert codec.grid((1, LENGTH)) == (64, 32)
    assert torch.allclose(codec.seconds(32, rate=RATE), (torch.arange(32) + 0.5) / 16)
    x = torch.zeros(1, 1, LENGTH)
    x[..., 7 * 500 + 250] = 1
    energy = codec.log_mel(x)[0].sum(0).unflatten(0, (32, 5)).sum(1)
    assert energy.argmax() == 7 and energy[:6].sum() == 0 and energy[9:].sum() == 0

    x = noise.normal((1, LENGTH), keys=[3])
    x[..., 0] = 0  # the mirror of sample n is sample LENGTH - n
    assert torch.allclose(codec.log_mel(x.flip(-1).roll(1, -1)), codec.log_mel(x).flip(-1), atol=1e-3)


def test_the_spectrum_and_back_is_the_identity(codec: Mel) -> None:
    x = noise.normal((LENGTH,), keys=[0, 1])
    assert torch.allclose(codec._istft(codec._stft(x)), x, atol=1e-4)
    loud = (2 * math.pi * 1000 * torch.arange(LENGTH) / RATE).sin()[None]
    assert abs(float(codec._stft(loud)[0, :, 80].abs().max()) - 1) < 1e-3


def test_mel_inversion_is_non_negative_and_close(codec: Mel, clips: Tensor) -> None:
    mel = codec.filters @ codec._stft(clips[:, 0]).abs()
    found = codec._unmel(mel)
    assert (found >= 0).all()
    assert (codec.filters @ found - mel).norm() < 0.02 * mel.norm()


def test_silence_stays_silent(codec: Mel) -> None:
    quiet = codec.decode(codec.encode(torch.zeros(1, 1, LENGTH)), keys=[0])
    assert quiet.abs().max() < 0.01
    whole = build(components=None)
    whole.fit(torch.stack([scene(i)[0] for i in range(4)]))
    assert whole.decode(whole.encode(torch.zeros(1, 1, LENGTH)), keys=[0]).abs().max() < 1e-4


def test_the_key_alone_decides_the_phase(codec: Mel, clips: Tensor) -> None:
    z = codec.encode(clips[:3])
    together = codec.decode(z, keys=[5, 6, 7])
    alone = torch.cat([codec.decode(z[i : i + 1], keys=[5 + i]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[:1], codec.decode(z[:1], keys=[6]), atol=1e-2)


def test_more_iterations_are_more_consistent(codec: Mel, clips: Tensor) -> None:
    """Griffin-Lim lowers the distance between the wanted magnitudes and those of the clip."""
    wanted = codec._stft(clips[:4, 0]).abs()

    def distance(iterations: int) -> float:
        other = build(iterations=iterations)
        return float((other._stft(other._griffin_lim(wanted, range(4))).abs() - wanted).norm() / wanted.norm())

    assert distance(32) < 0.5 * distance(0) and distance(32) < 0.15


def test_any_latent_can_be_heard(codec: Mel, clips: Tensor) -> None:
    """A half-trained network may ask for anything; no clip in [-1, 1] reaches the ceiling of the picture."""
    wild = codec.decode(100 * noise.normal((64, 32), keys=[0, 1]), keys=[0, 1])
    assert wild.shape == (2, 1, LENGTH) and wild.isfinite().all() and wild.abs().max() <= 1
    assert codec.log_mel(torch.ones(1, 1, LENGTH)).max() < codec.ceiling


def test_whiten_zero_only_rotates(clips: Tensor) -> None:
    codec = build(components=None, whiten=0.0)
    codec.fit(clips)
    near = torch.cdist(codec.log_mel(clips).flatten(1), codec.log_mel(clips).flatten(1))
    far = torch.cdist(codec.encode(clips).flatten(1), codec.encode(clips).flatten(1))
    ratio = (far / near)[near > 1]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)


def test_buffers_restore_the_codec(codec: Mel, clips: Tensor) -> None:
    other = build()
    other.load_state_dict(codec.state_dict())
    assert other.fitted and torch.equal(other.encode(clips), codec.encode(clips))


def test_errors_say_what_to_do(codec: Mel) -> None:
    with pytest.raises(UserError, match="multiple of hop x group = 500"):
        codec.grid((1, 16100))
    with pytest.raises(UserError, match="shape .1 n."):
        codec.grid((2, LENGTH))
    with pytest.raises(UserError, match="fit"):
        build().encode(torch.zeros(1, 1, LENGTH))
    with pytest.raises(UserError, match="bands hold no frequency bin"):
        Mel(rate=RATE, hop=100, window=256, bands=128)
    with pytest.raises(UserError, match="window 100"):
        Mel(rate=RATE, hop=100, window=100, bands=40)
