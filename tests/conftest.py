"""What holds for every test: torch's own randomness, from which layers take their first weights, ends with the test.

Files that start real launches come first, so that of two workers neither ends long after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def own_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


LONG = (
    "test_journeys",
    "test_zero",
    "test_runner",
    "test_evaluate",
    "test_encode",
    "test_health",
    "test_folder_journey",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A stable sort by file: the order within each stays as it is written."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
