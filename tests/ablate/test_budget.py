"""What a cell costs: counted, not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdiff import build
from mmdiff.ablate.budget import Cost, measure, table
from mmdiff.config import read

SMOKE = Path(__file__).parents[2] / "configs" / "sounding_objects" / "smoke.yaml"


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Cost]:
    """By batch."""
    data = tmp_path_factory.mktemp("data") / "clips"
    options = [f"data.path={data}", "prepare.clips=24", "steps=10", "system.conditioner.length=8"]  # one length of text
    return {batch: measure(read(SMOKE, [*options, f"batch={batch}"])) for batch in (2, 4)}


def test_parameters_are_those_that_learn(costs: dict[int, Cost]) -> None:
    system = build.make_system(build.parse(read(SMOKE, ["system.conditioner.length=8"])))
    learner = system.players()["learner"]
    assert costs[4].parameters == sum(p.numel() for p in learner.parameters() if p.requires_grad)


def test_arithmetic_grows_with_the_batch_and_the_steps(costs: dict[int, Cost]) -> None:
    assert costs[4].flops_a_step == 2 * costs[2].flops_a_step
    assert costs[4].flops == 10 * costs[4].flops_a_step


def test_memory_is_four_numbers_a_weight_and_what_a_batch_keeps(costs: dict[int, Cost]) -> None:
    """AdamW with averages: weight, gradient, two moments and the average, float32; the rest doubles with the batch."""
    weights = 5 * 4 * costs[2].parameters
    kept = [cost.memory - weights for cost in costs.values()]
    assert 0 < 1.5 * kept[0] < kept[1] <= 2.05 * kept[0]


def test_the_table_says_it_all(costs: dict[int, Cost]) -> None:
    text = table({"small": costs[2], "large": costs[4]}, seeds=3)
    assert f"{costs[4].parameters:,}" in text and "2 arms x 3 seeds = 6 cells" in text
