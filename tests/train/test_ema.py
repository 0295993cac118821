"""The average of the weights: its formula, and that exchanging it with the weights is exact."""

from __future__ import annotations

import pytest
import torch

from mmdiff.train import ema


def test_the_average_is_the_weighted_sum_of_all_weights():
    weights = [torch.full((3,), 0.0)]
    average = ema.start(weights)
    for value in (1.0, 2.0, 3.0):
        weights[0].fill_(value)
        ema.update(average, weights, decay=0.9)
    expected = 0.1 * (3.0 + 0.9 * 2.0 + 0.81 * 1.0)
    torch.testing.assert_close(average[0], torch.full((3,), expected))


def test_slices_average_to_the_same_bits_as_the_whole():
    whole = torch.linspace(-3, 5, 1001)
    new = (whole * 1.37).sin()
    average, slices = [whole.clone()], list(whole.clone().split(334))
    ema.update(average, [new], decay=0.987)
    ema.update(slices, list(new.split(334)), decay=0.987)
    assert torch.equal(average[0], torch.cat(slices))


def test_exchanging_twice_changes_nothing():
    average, weights = [torch.linspace(0, 1, 7)], [torch.linspace(3, 9, 7).requires_grad_()]
    ema.exchange(average, weights)
    assert torch.equal(average[0], torch.linspace(3, 9, 7)) and torch.equal(weights[0], torch.linspace(0, 1, 7))
    ema.exchange(average, weights)
    assert torch.equal(average[0], torch.linspace(0, 1, 7))


def test_a_short_run_forgets_its_initialisation():
    assert ema.decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert ema.decay_at(10**6, 0.999) == 0.999
