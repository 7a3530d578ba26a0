"""Clocks, temperature, power and throttle reasons of a GPU, as nvidia-smi tells them.

Figures of one run compare only while the clocks stand still, so they are read before and after, and
what moved or slowed the GPU down is said beside the figures.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""What the bits are called since driver 535, and before."""
SLOWER = {
    0x4: "power cap (software)",
    0x8: "slowdown (hardware)",
    0x10: "boost of several GPUs in step",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake (hardware)",
    0x100: "display clocks",
}
"""Bits of nvml.h that keep clocks down. Not 0x1, an idle GPU, nor 0x2, clocks somebody has set."""
MOVED = 0.03  # of the SM or memory clock: as much as a figure of the ops is certain to
SECONDS = 20.0

Ask = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class State:
    """One look at the GPU. What it does not tell is None; `unknown` says why nothing is known."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    celsius: float | None = None
    watts: float | None = None
    throttled: tuple[str, ...] = ()
    unknown: str = ""

    def line(self) -> str:
        """The state on one line."""
        if self.unknown:
            return f"unknown: {self.unknown}"
        told = (
            ("SM {:.0f} MHz", self.sm_mhz),
            ("memory {:.0f} MHz", self.memory_mhz),
            ("{:.0f} °C", self.celsius),
            ("{:.0f} W", self.watts),
        )
        known = [text.format(value) for text, value in told if value is not None]
        slowed = f"throttled: {', '.join(self.throttled)}" if self.throttled else "not throttled"
        return ", ".join([*known, slowed])


def ask(arguments: Sequence[str]) -> str:
    """What nvidia-smi prints. Raises OSError or subprocess.SubprocessError."""
    done = subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    return done.stdout


def read(gpu: str, ask: Ask = ask) -> tuple[str, State]:
    """The driver's version and the state of `gpu`, an index or a UUID of nvidia-smi."""
    reason = "nvidia-smi tells nothing"
    for bits in REASONS:
        query = f"--query-gpu={','.join((*FIELDS, bits))}"
        try:
            text = ask(["-i", gpu, query, "--format=csv,noheader,nounits"])
        except FileNotFoundError:
            return "", State(unknown="there is no nvidia-smi")
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"nvidia-smi fails: {getattr(error, 'stdout', None) or error}".strip()
            continue
        cells = [cell.strip() for cell in text.strip().split("\n")[0].split(",")]
        if len(cells) != len(FIELDS) + 1:
            reason = f"nvidia-smi wrote {text.strip()!r:.200}"
            continue
        figures = [_number(cell) for cell in cells[1:-1]]
        return cells[0], State(*figures, _reasons(cells[-1]))
    return "", State(unknown=reason[:500])


def _number(cell: str) -> float | None:
    """[N/A] and the like are None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def _reasons(cell: str) -> tuple[str, ...]:
    try:
        bits = int(cell, 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in SLOWER.items() if bits & bit)


def warnings(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """What makes the figures between two states doubtful, in words; the fields of `State`."""
    found = []
    for when, state in (("before", before), ("after", after)):
        if state is None or state["unknown"]:
            why = f": {state['unknown']}" if state else ""
            found.append(f"the GPU's clocks {when} the cases are unknown{why}")
        elif state["throttled"]:
            found.append(f"throttled {when} the cases: {', '.join(state['throttled'])}")
    if before is None or after is None:
        return found
    for name, words in (("sm_mhz", "SM"), ("memory_mhz", "memory")):
        old, new = before[name], after[name]
        if old and new and abs(new / old - 1) > MOVED:
            found.append(f"the {words} clock moved from {old:.0f} to {new:.0f} MHz")
    return found
