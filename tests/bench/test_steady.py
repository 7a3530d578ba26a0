"""A command starts again with the environment that steady times need."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, sys
from flashvl_bench import steady
steady.restart({"FLASHVL_STEADY": "as it should be"})
print(os.environ["FLASHVL_STEADY"], sys.argv[1:])
"""


def _printed(**variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", PROGRAM, "an argument"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_missing_variable_is_set_and_the_arguments_stay() -> None:
    assert _printed() == "as it should be ['an argument']"


def test_a_variable_of_the_caller_is_left_alone() -> None:
    assert _printed(FLASHVL_STEADY="mine") == "mine ['an argument']"
