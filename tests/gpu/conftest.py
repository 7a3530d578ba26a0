"""Tests that need a GPU; without one each file skips and says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fault() -> Iterator[None]:
    """A fault of a kernel is a failure of the test that launched it, and of no later one."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        # The context is lost, and with it every later call of this process. pytest-xdist names the
        # test and starts another process.
        print(f"the GPU refuses to go on: {error}", file=sys.stderr, flush=True)
        os._exit(3)
