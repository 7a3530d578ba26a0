"""A profile as Chrome's trace format (opens in Perfetto and chrome://tracing) and as folded stacks.

The format: "Trace Event Format", Google, complete events ("ph": "X") with times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flashvl_bench.profile.record import Recorder

SLACK_US = 1e-3  # of two times that were rounded to a nanosecond


class TraceError(ValueError):
    """A trace that a viewer would show wrongly; the text names the event."""


def trace(recorder: Recorder, title: str) -> dict[str, Any]:
    """The trace of what was recorded: one process, one thread, the spans nested in it."""
    origin = recorder.spans[0].start if recorder.spans else 0.0
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": title}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": "answer"}},
    ]
    for span in recorder.spans:
        event: dict[str, Any] = {
            "ph": "X",
            "pid": 1,
            "tid": 1,
            "name": span.name,
            "cat": "stage" if span.call is None else "op",
            "ts": round((span.start - origin) * 1e6, 3),
            "dur": round(span.seconds * 1e6, 3),
        }
        if span.call is not None:
            cost = span.call.cost
            event["args"] = {
                "shape": span.call.shape,
                "dtype": span.call.dtype,
                "backend": span.call.backend,
                "kernel": span.call.kernel,
                "bytes": cost.bytes,
                "flops": cost.flops,
            }
        events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def check(document: Any) -> int:
    """The number of complete events. Raises TraceError where `document` is not what viewers read:
    a field missing, a time that is none, or an event that overlaps another without lying in it."""
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise TraceError("a trace is an object with a list traceEvents")
    complete: list[tuple[float, float, str]] = []
    for i, event in enumerate(document["traceEvents"]):
        missing = {"ph", "pid", "tid", "name"} - set(event)
        if missing or event["ph"] not in ("X", "M"):
            raise TraceError(f"event {i} lacks {', '.join(sorted(missing)) or 'a known ph'}")
        if event["ph"] == "X":
            times = (event.get("ts"), event.get("dur"))
            if not all(isinstance(t, int | float) and 0 <= t < 1e15 for t in times):
                raise TraceError(f"event {i} ({event['name']}) has the times {times}")
            complete.append((event["ts"], event["ts"] + event["dur"], event["name"]))
    _check_nesting(complete)
    return len(complete)


def _check_nesting(events: list[tuple[float, float, str]]) -> None:
    open_events: list[tuple[float, float, str]] = []
    for event in sorted(events, key=lambda e: (e[0], -e[1])):
        while open_events and open_events[-1][1] <= event[0] + SLACK_US:
            open_events.pop()
        if open_events and event[1] > open_events[-1][1] + SLACK_US:
            raise TraceError(f"{event[2]} ends after {open_events[-1][2]}, in which it began")
        open_events.append(event)


Stack = tuple[str, ...]


def stacks(recorder: Recorder) -> dict[Stack, float]:
    """Seconds of each distinct path, of its own: root, stage, op, shape."""
    found: dict[Stack, float] = {}
    for span, own in zip(recorder.spans, recorder.own_seconds(), strict=True):
        path = [span.call.shape] if span.call is not None else []
        here = span
        while True:
            path.append(here.name)
            if here.parent < 0:
                break
            here = recorder.spans[here.parent]
        key = tuple(reversed(path))
        found[key] = found.get(key, 0.0) + own
    return found


def folded(recorder: Recorder) -> Iterator[str]:
    """The lines of a folded-stacks file, in whole microseconds, as flamegraph.pl and speedscope
    read it."""
    for path, seconds in stacks(recorder).items():
        names = (name.replace(";", ",") for name in path)
        yield f"{';'.join(names)} {max(round(seconds * 1e6), 0)}"
