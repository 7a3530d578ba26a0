"""The server's half of remote.py. Standard library only: it is imported by other environments.

A request is a line {"do": name, ...}; the answer a line with what the handler returned, or
{"error": text}. The lines go over the standard streams as they were at the start; whatever a
library prints later lands on the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Handler = Callable[..., dict[str, Any] | None]


def settings() -> dict[str, Any]:
    """What the client wants measured: the only argument of the command line."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def serve(start: Callable[[], dict[str, Handler]]) -> None:
    """Answer requests until the input ends. `start` loads the model and returns the handlers; its
    error is the answer to the first request."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        handlers = start()
        replies.write(json.dumps({"ready": True}) + "\n")
        for line in sys.stdin:
            request = json.loads(line)
            replies.write(json.dumps(handlers[request.pop("do")](**request) or {}) + "\n")
    except BaseException as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}) + "\n")
        raise


def timed(run: Callable[[], object]) -> dict[str, Any]:
    """The seconds of one call."""
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start}
