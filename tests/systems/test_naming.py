"""The tower's lesson: words are told from pictures."""

from __future__ import annotations

import torch

from mmdiff import noise
from mmdiff.batch import Batch, ClipShape
from mmdiff.models.tower import Tower
from mmdiff.systems.naming import Naming


def test_words_are_buckets_whatever_their_case_and_order() -> None:
    system = Naming(tower=Tower(widths=[8]), shape=ClipShape(frames=1, fps=8, size=(8, 8), rate=8000), buckets=64)
    rows = system.words(["A red ball, red!", "ball a RED", "a blue ball"])
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2]) and rows[0].sum() == 3


def test_it_learns_two_words() -> None:
    torch.manual_seed(0)
    system = Naming(tower=Tower(widths=[8, 8]), shape=ClipShape(frames=1, fps=8, size=(8, 8), rate=8000), buckets=16)
    step = torch.optim.Adam(system.parameters(), lr=1e-2)
    for i in range(40):
        signs = noise.normal((), keys=range(i * 8, i * 8 + 8)).sign()
        video = signs[:, None, None, None, None].expand(-1, 3, 1, 8, 8)
        text = ["light" if sign > 0 else "dark" for sign in signs]
        loss, logs = system.loss(Batch(video=video, text=text), seed=0, step=i)
        step.zero_grad()
        loss.backward()
        step.step()
    assert logs["found"] == 1
