"""What tests of the model and its training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from flashvl.train.canvas import SIZES, Example
from flashvl.train.dataset import example


@pytest.fixture(scope="module")
def drawn_scenes() -> list[Example]:
    return [example(11, i, SIZES[i % 3], numbers=0.0) for i in range(600)]


@pytest.fixture(scope="module")
def drawn_numbers() -> list[Example]:
    return [example(12, i, SIZES[i % 3], numbers=1.0) for i in range(300)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Calls this small gain nothing from a second thread, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """As training runs: gathers otherwise add up as threads finish."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
