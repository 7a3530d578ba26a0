"""What keeps the time of a call steady from process to process, where only the environment that a
process begins with can say so. Both were seen to make calls of a fifth of a millisecond three to
fifteen times as long, for seconds on end, in one process and not in the next."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# glibc's aligned allocations leave small chunks beside a result, and its per-thread cache holds on
# to them: the freed result is then a few bytes short for the next one, which is cut from fresh
# memory, page fault by page fault, for as long as the process lives.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}

# A worker that wakes up on the core where its caller spins waits for the end of a time slice.
THREADS = {"OMP_PROC_BIND": "true"}


def restart(variables: Mapping[str, str]) -> None:
    """Start this command again with those of the variables that are not set yet, to any value."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if missing:
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **missing})
