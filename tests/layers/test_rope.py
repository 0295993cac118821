"""Rotation: lengths stay, scores see differences alone, and the formula is the one of transformers."""

from __future__ import annotations

import pytest
import torch

from mmdiff import noise
from mmdiff.layers.rope import frequencies, grid_angles, places, rotate, split_pairs


def test_the_norm_of_every_pair_stays() -> None:
    x, angles = noise.normal((3, 5, 2, 12), keys=[0])[0], 9 * noise.normal((3, 5, 6), keys=[1])[0]
    y = rotate(x, angles)
    pairs = lambda z: torch.stack(z.chunk(2, -1)).norm(dim=0)
    torch.testing.assert_close(pairs(y), pairs(x))
    assert torch.equal(rotate(x, torch.zeros(3, 5, 6)), x)


def test_the_formula_is_rotate_half() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, angles = noise.normal((2, 7, 3, 16), keys=[0])[0], noise.normal((2, 7, 8), keys=[1])[0]
    both = torch.cat([angles, angles], -1)
    theirs, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), both.cos(), both.sin())
    torch.testing.assert_close(rotate(x, angles), theirs.transpose(1, 2))


def test_scores_depend_on_differences_of_seconds() -> None:
    q, k = (noise.normal((1, 6, 1, 1, 1, 24), keys=[i]).double() for i in range(2))
    seconds = noise.uniform(keys=list(range(6)))[None].double() * 4
    scores = []
    for offset in (0.0, 1.75):
        angles = grid_angles(seconds + offset, (1, 1), head=24).double()
        a, b = rotate(q, angles).flatten(0, -2), rotate(k, angles).flatten(0, -2)
        scores.append(a @ b.T)
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    assert (scores[0] - q.flatten(0, -2) @ k.flatten(0, -2).T).abs().max() > 0.1


def test_scores_depend_on_differences_of_places() -> None:
    """One query and one key everywhere on the grid: what they score is a function of (dh, dw)."""
    angles = grid_angles(torch.zeros(1, 1), (4, 5), head=24)
    q, k = (noise.normal((24,), keys=[i])[0].expand(1, 1, 4, 5, 1, 24) for i in range(2))
    scores = torch.einsum("hwe,HWe->hwHW", rotate(q, angles)[0, 0, :, :, 0], rotate(k, angles)[0, 0, :, :, 0])
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-4, rtol=1e-4)
    assert (scores[0, 0, 0, 1] - scores[0, 0, 1, 0]).abs() > 1e-3


def test_a_frame_and_its_sound_have_the_same_angle() -> None:
    seconds = torch.tensor([[0.25, 0.75]])
    assert torch.equal(grid_angles(seconds, (1, 1), head=16)[:, 1], grid_angles(seconds[:, 1:], (1, 1), head=16)[:, 0])


def test_periods_span_what_they_say() -> None:
    periods = 2 * torch.pi / frequencies(8, shortest=0.125, longest=16.0)
    assert periods[0].item() == pytest.approx(0.125) and periods[-1].item() == pytest.approx(16.0)
    torch.testing.assert_close(periods[1:] / periods[:-1], (periods[1] / periods[0]).expand(7))


@pytest.mark.parametrize("head", [2, 4, 6, 10, 24, 64])
def test_every_pair_of_a_head_has_an_axis(head: int) -> None:
    assert sum(split_pairs(head // 2, 3)) == head // 2
    assert grid_angles(torch.zeros(2, 3), (2, 2), head=head).shape == (2, 3, 2, 2, head // 2)


def test_places_are_waves_of_seconds_and_of_shares_of_the_frame() -> None:
    found = places(torch.tensor([[1.0, 3.0]]), (2, 4), octaves=2)  # (b t h w 12)
    turns = torch.tensor([3 / 8, 0.75 / 4, 0.375 / 4])[:, None] * torch.tensor([1, 2])  # at t = 3 s, row 1, column 1
    want = torch.cat([(2 * torch.pi * turns).sin(), (2 * torch.pi * turns).cos()], -1).flatten()
    assert found.shape == (1, 2, 2, 4, 12)
    torch.testing.assert_close(found[0, 1, 1, 1], want)
