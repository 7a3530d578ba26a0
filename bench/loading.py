"""How much memory loading a checkpoint takes at its peak.

One process writes random weights in the released layout; a fresh one imports everything, notes its
peak so far, loads, and reads every page of the weights, so that memory mapping hides nothing. The
rise of its peak resident memory over the bytes of the weights is the figure.

    python -m flashvl_bench.loading save FOLDER CONFIG_JSON DTYPE
    python -m flashvl_bench.loading load FOLDER DTYPE WEIGHTS
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from flashvl import FlashVL, FlashVLConfig
from flashvl_bench.ceilings import DTYPES
from flashvl_bench.memory import resident

BAR = 1.15  # peak over the bytes of the weights
PAGE = 4096
SMALL = 256 << 20


@dataclass(frozen=True)
class Load:
    """Bytes of the weights, of the peak before loading, and at the end. status: ok or "fails"."""

    status: str
    reason: str = ""
    weight_bytes: int = 0
    baseline_bytes: int = 0
    peak_bytes: int = 0
    ratio: float = 0.0

    def line(self) -> str:
        """The result on one line."""
        if self.status != "ok":
            return f"loading   FAILS: {self.reason}"
        rise = self.peak_bytes - self.baseline_bytes
        verdict = f"{'within' if self.ratio <= BAR else 'OVER'} the bar of {BAR}x"
        if self.weight_bytes < SMALL:
            verdict = "too small to judge: the loader's own few MiB decide"
        return (
            f"loading   peak memory rises by {rise / 2**20:.1f} MiB for "
            f"{self.weight_bytes / 2**20:.1f} MiB of weights: {self.ratio:.3f}x, {verdict}"
        )


def measure(config: FlashVLConfig, dtype: str, weights: str = "bf16") -> Load:
    """Save and load in fresh processes, in a temporary folder (TMPDIR names where)."""
    size = _parameters(config) * DTYPES[dtype].itemsize
    with tempfile.TemporaryDirectory(prefix="flashvl-bench-") as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.05 * size:
            reason = (
                f"the checkpoint takes {size / 2**30:.1f} GiB, {folder} has "
                f"{free / 2**30:.1f} GiB free; set TMPDIR to a larger disk"
            )
            return Load("fails", reason)
        saved = _worker("save", folder, json.dumps(config.to_json()), dtype)
        if isinstance(saved, str):
            return Load("fails", f"saving: {saved}")
        loaded = _worker("load", folder, dtype, weights)
    if isinstance(loaded, str):
        return Load("fails", f"loading: {loaded}")
    weight, baseline, peak = (loaded[f"{name}_bytes"] for name in ("weight", "baseline", "peak"))
    return Load("ok", "", weight, baseline, peak, (peak - baseline) / weight)


def _parameters(config: FlashVLConfig) -> int:
    return sum(parameter.numel() for parameter in FlashVL(config, "meta").parameters())


def _worker(*args: str) -> dict[str, int] | str:
    """What a fresh process found, or the last line of its error."""
    command = [sys.executable, "-m", "flashvl_bench.loading", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"the process ended with status {done.returncode}"
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _save(folder: str, config: str, dtype: str) -> dict[str, Any]:
    model = FlashVL.random(FlashVLConfig.from_json(json.loads(config)), dtype=DTYPES[dtype])
    model.save_pretrained(folder)
    return {}


def _load(folder: str, dtype: str, weights: str) -> dict[str, Any]:
    import torch

    torch.ones(256, 256).sum()  # the thread pool and its stacks are no part of loading
    baseline = resident("VmHWM")
    model = FlashVL.from_pretrained(folder, dtype=DTYPES[dtype], weights=weights)
    held = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        tensor.detach().reshape(-1).view(torch.uint8)[::PAGE].sum()
    return {
        "weight_bytes": sum(held.values()),
        "baseline_bytes": baseline,
        "peak_bytes": resident("VmHWM"),
    }


if __name__ == "__main__":
    work = {"save": _save, "load": _load}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
