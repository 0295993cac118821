"""Couplings of noise: what training draws is what sampling walks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.coupling import (
    Coupled,
    Coupling,
    IndependentCoupling,
    MixedCoupling,
    SharedCoupling,
    ShiftedCoupling,
    local,
    sections,
    spread,
)
from mmdiff.errors import UserError
from mmdiff.process import Cosine, Linear, LogitNormal, shift
from mmdiff.sampling import SAMPLERS, draws, shifted, start, uniform

B, NAMES, SHAPES = 512, ["video", "audio"], {"video": (2, 3), "audio": (4,)}
SHIFTED = ShiftedCoupling({"audio": 3.0})
MIXED = MixedCoupling([SharedCoupling(), IndependentCoupling()], [3, 1])
COUPLINGS: dict[str, Coupling] = {
    "shared": SharedCoupling(), "shifted": SHIFTED, "independent": IndependentCoupling(), "mixed": MIXED
}  # fmt: skip
each_coupling = pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)


def uniforms(purpose: str) -> Tensor:
    return noise.uniform(keys=[noise.key(purpose, i) for i in range(B)])


def draw(u: Tensor) -> Tensor:
    return LogitNormal(mean=1.0)(u, tokens=1)


def drawn(coupling: Coupling) -> dict[str, Tensor]:
    return coupling(uniforms, draw, NAMES)


@each_coupling
def test_times_are_a_function_of_their_uniforms(coupling: Coupling) -> None:
    first, again = drawn(coupling), drawn(coupling)
    assert list(first) == NAMES and all(torch.equal(first[name], again[name]) for name in NAMES)
    assert all(t.shape == (B,) and ((t > 0) & (t < 1)).all() for t in first.values())
    assert torch.equal(first["video"], drawn(COUPLINGS["shared"])["video"])  # arms of an ablation share it


def test_each_coupling_is_what_it_says() -> None:
    t, independent = draw(uniforms("time")), drawn(IndependentCoupling())
    shared = drawn(SharedCoupling())
    assert shared["audio"] is shared["video"]
    assert torch.equal(drawn(SHIFTED)["audio"], shift(t, 3.0)) and torch.equal(drawn(SHIFTED)["video"], t)
    correlation = torch.corrcoef(torch.stack([independent["video"], independent["audio"]]))[0, 1]
    assert abs(float(correlation)) < 4 / B**0.5
    same = drawn(MIXED)["audio"] == t
    assert float(same.float().mean()) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / B) ** 0.5)
    assert torch.equal(drawn(MIXED)["audio"][~same], independent["audio"][~same])


@each_coupling
def test_training_and_sampling_walk_one_path(coupling: Coupling) -> None:
    """Where modalities hang together in training they hang together in sampling; both ends are ends."""
    t = drawn(coupling)
    if coupling in (COUPLINGS["shared"], SHIFTED):
        assert torch.equal(coupling.at(t["video"], "audio"), t["audio"])
    ends = torch.tensor([0.0, 1.0])
    assert all(torch.equal(coupling.at(ends, name), ends) for name in NAMES)


def test_odds_that_cannot_be_are_refused() -> None:
    for parts, odds in (([], []), ([SharedCoupling()], [1, 1]), ([SharedCoupling()], [0])):
        with pytest.raises(UserError, match="odds"):
            MixedCoupling(parts, odds)


def test_times_spread_over_a_packed_sample() -> None:
    assert sections(SHAPES) == {"video": slice(0, 6), "audio": slice(6, 10)}
    t = torch.tensor([0.2, 0.6])
    assert spread({"video": t, "audio": t}, SHAPES) is t and local(SharedCoupling(), t, SHAPES) is t
    wide = local(SHIFTED, t, SHAPES)
    assert torch.equal(wide[:, :6], t[:, None].expand(2, 6))
    torch.testing.assert_close(wide[:, 6:], shift(t, 3.0)[:, None].expand(2, 4))
    entries = torch.linspace(0, 1, 20).view(2, 10)
    torch.testing.assert_close(local(SHIFTED, entries, SHAPES)[:, 6:], shift(entries[:, 6:], 3.0))


@pytest.mark.parametrize(
    "sampler", sorted(set(SAMPLERS) - {"churn", "restart"})
)  # these go back by the grid's own clock
@pytest.mark.parametrize("process", [Linear(), Cosine()], ids=str)
def test_a_coupled_sampler_is_a_sampler_for_each_modality(sampler: str, process: Any) -> None:
    """Each modality walks as it would alone on its own shifted grid: bit for bit where nothing couples them."""
    shapes, coupling = {"video": (6,), "audio": (4,)}, ShiftedCoupling({"video": 0.5, "audio": 3.0})
    data = {"video": torch.tensor(1.5), "audio": torch.tensor(-0.5)}
    x, fresh = noise.normal((10,), keys=[0, 1]), lambda i: noise.normal((10,), keys=[10 + i, 20 + i])
    whole = torch.cat([data[name].expand(2, part.stop - part.start) for name, part in sections(shapes).items()], 1)

    def posterior(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """The exact denoiser of N(mean, 1/4)."""
        a, s = process(t if t.ndim == x.ndim else t[:, None])
        return mean + (a / 4) / (a**2 / 4 + s**2) * (x - a * mean)

    def walk(process: Any, times: Tensor, denoise: Any, part: slice) -> Tensor:
        extra = {"noise": lambda i: fresh(i)[:, part]} if draws(SAMPLERS[sampler]) else {}
        begin = start(x[:, part], process=process, times=times)
        return SAMPLERS[sampler](denoise, begin, process=process, times=times, **extra)

    coupled = Coupled(process, coupling, shapes)
    together = walk(coupled, uniform(8), lambda x, t: posterior(x, local(coupling, t, shapes), whole), slice(0, 10))
    for name, part in sections(shapes).items():
        times = shifted(8, shift=coupling.factors[name])
        alone = walk(process, times, lambda x, t, name=name: posterior(x, t, data[name]), part)
        torch.testing.assert_close(together[:, part], alone, atol=2e-5, rtol=2e-5)
