"""Nats are exact where the likelihood is known, and only words that change the model count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.coupling import SharedCoupling, ShiftedCoupling
from mmdiff.evaluate.words import LEVELS, listened, nats, summary, table
from mmdiff.process import Linear

TEXTS = ["a red ball slides left", "a green ball slides right", "a blue ball falls and bounces twice"]
MEANS = {"red": -0.5, "green": 0.7, "blue": 0.2}


def test_the_integral_is_the_difference_of_log_likelihoods() -> None:
    """For N(mu, 1) the error is (g + (mu - x)^2) / (1 + g)^2 at a ratio g; half its integral is the log-likelihood."""
    ratios = torch.logspace(-5, 5, 4000, dtype=torch.float64)
    own, other = torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.1])  # (mu - x)^2 to come
    gaps = [(other**2 - own**2) / (1 + g) ** 2 for g in ratios]
    torch.testing.assert_close(nats(gaps, ratios).float(), (other**2 - own**2) / 2, atol=1e-4, rtol=1e-4)


class Hears:
    """The exact model of clips N(mean of the colour, 1) in the picture, and of N(0, 1) in the sound."""

    device, coupling = torch.device("cpu"), SharedCoupling()

    def __init__(self) -> None:
        self.denoiser = self
        self.process = Linear()

    def condition(self, batch: Any) -> Any:
        mean = [next(m for c, m in MEANS.items() if c in text) if "cyan" not in text else 5.0 for text in batch["text"]]
        video = torch.tensor(mean)[:, None].expand(-1, 8)
        return {"shapes": {"video": (8, 1), "audio": (4, 1)}, "mean": torch.cat([video, torch.zeros(len(mean), 4)], 1)}

    def noisy(self, batch: Any, *, t: Tensor, keys: Any) -> tuple[Tensor, Tensor, Tensor]:
        return batch["x"], t, noise.normal((12,), keys=keys)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        a, s = self.process(t[:, None] if t.ndim == 1 else t)
        return (a * x + s**2 * cond["mean"]) / (a**2 + s**2)

    def parts(self, x: Tensor, batch: Any) -> dict[str, Tensor]:
        return {"video": x[:, :8], "audio": x[:, 8:]}


@pytest.fixture(params=[SharedCoupling(), ShiftedCoupling({"audio": 3.0})], ids=["shared", "shifted"])
def system(request: Any) -> Hears:
    made = Hears()
    made.coupling = request.param
    return made


def test_only_the_word_that_is_heard_counts(system: Hears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mmdiff.world.exchange.WORDS", WORDS := {"colour": (tuple(MEANS),), "direction": (("left", "right"),)}
    )
    monkeypatch.setattr("mmdiff.evaluate.words.WORDS", WORDS)
    ids = [str(i) for i in range(3)]
    x = noise.normal((12,), keys=noise.keys(0, "x", 0, ids))
    valid = {"video": torch.ones(3, dtype=torch.bool), "audio": torch.tensor([True, False, True])}
    batch: Any = {"text": TEXTS, "id": ids, "x": x, "valid": valid}
    heard = listened(system, batch, seed=0)
    assert set(heard) == {"colour", "direction"}
    assert len(heard["colour"]["video"]) == 3 and len(heard["direction"]["video"]) == 2  # those that state it
    assert heard["direction"]["video"].abs().max() == 0 and heard["colour"]["audio"].abs().max() == 0
    assert heard["colour"]["video"].abs().min() > 0


def test_nats_of_an_exact_model_are_its_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over the noise; up to a ratio of 1, which holds half of the whole integral of 1 / (1 + g)^2."""
    monkeypatch.setattr("mmdiff.evaluate.words.WORDS", {"colour": (("red", "green"),)})
    monkeypatch.setattr("mmdiff.world.exchange.WORDS", {"colour": (("red", "green"),)})
    monkeypatch.setattr("mmdiff.evaluate.words.LEVELS", LEVELS.new_tensor(torch.logspace(2, 0, 60).tolist()))
    n = 400
    batch: Any = {
        "text": ["a red ball"] * n, "id": [str(i) for i in range(n)], "x": torch.full((n, 12), -0.5),
        "valid": {name: torch.ones(n, dtype=torch.bool) for name in ("video", "audio")},
    }  # fmt: skip
    found = listened(Hears(), batch, seed=0)["colour"]["video"]
    exact = 8 * (0.7 + 0.5) ** 2 / 2 / 2
    assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / n**0.5 + 0.01 * exact)


def test_the_table_names_facts_and_intervals() -> None:
    row = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 12}
    said = table({"direction": {"right": row, "nats": {"video": {**row, "value": 1.5}}}})
    assert "direction" in said and "0.75 (0.50-1.00)" in said and "video 1.50" in said


def test_who_is_deaf_to_a_word_is_right_half_of_the_time() -> None:
    assert summary({"video": [0.0, 0.0, 0.0]}, seed=0)["right"]["value"] == 0.5
    assert summary({"video": [1.0, -2.0], "audio": [0.5, 3.0]}, seed=0)["right"]["value"] == 1.0
