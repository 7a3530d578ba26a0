"""Peak memory of the whole model at work, in a fresh process for each weight format.

The process builds the model with random weights in its final form, answers once (one image, a
prompt, some steps), and reports VmHWM, the most memory it ever held, and what it holds afterwards.
Python, PyTorch and their libraries are in the figures: they are part of what a user pays.

    python -m flashvl_bench.memory CONFIG_JSON DTYPE WEIGHTS BACKEND THREADS PROMPT
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from flashvl import FlashVLConfig

STEPS = 4
# The bars of the whole 2B model (static_2b), in bytes.
BARS = {"bf16": 5.3e9, "int8": 3.4e9, "int4": 2.6e9}


@dataclass(frozen=True)
class Memory:
    """status: ok or "fails". Bytes: of weights and buffers, at the peak, and at the end."""

    weights: str
    status: str
    reason: str = ""
    held_bytes: int = 0
    peak_bytes: int = 0
    steady_bytes: int = 0

    def line(self, whole: bool) -> str:
        """The result on one line; `whole`: of the full 2B model, for which there is a bar."""
        if self.status != "ok":
            return f"memory    {self.weights}: FAILS: {self.reason}"
        text = (
            f"memory    {self.weights}: peak {self.peak_bytes / 1e9:.2f} GB, afterwards "
            f"{self.steady_bytes / 1e9:.2f} GB, weights {self.held_bytes / 1e9:.2f} GB"
        )
        if not whole:
            return text
        bar = BARS[self.weights]
        return f"{text}; {'within' if self.peak_bytes <= bar else 'OVER'} {bar / 1e9:.1f} GB"


def measure(
    config: FlashVLConfig, dtype: str, weights: str, backend: str, threads: int, prompt: int
) -> Memory:
    """Run the model in a fresh process."""
    options = (dtype, weights, backend, str(threads), str(prompt))
    command = [sys.executable, "-m", "flashvl_bench.memory", json.dumps(config.to_json()), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return Memory(weights, "fails", lines[-1])
    return Memory(weights, "ok", "", **json.loads(done.stdout.splitlines()[-1]))


def resident(field: str) -> int:
    """Bytes of VmHWM or VmRSS of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
    return int(found[1]) * 1024


def _answer(config: str, dtype: str, weights: str, backend: str, threads: str, prompt: str) -> None:
    import torch

    from flashvl import FlashVL
    from flashvl_bench import work
    from flashvl_bench.ceilings import DTYPES
    from flashvl_kernels import set_backend

    set_backend(backend)
    torch.set_num_threads(int(threads))
    read = FlashVLConfig.from_json(json.loads(config))
    model = FlashVL.random(read, dtype=DTYPES[dtype], weights=weights)
    side = read.vision.tile_px
    with torch.no_grad():
        image = model.embed_image(torch.zeros(1, 3, side, side, dtype=DTYPES[dtype]))
        text = model.embed(torch.arange(int(prompt)) % read.decoder.vocab)
        embeds = torch.cat((image, text))
        _, cache = model.prefill(embeds, capacity=len(embeds) + STEPS)
        for token in range(STEPS):
            model.decode_step(token, cache)
    steady = resident("VmRSS")
    peak = max(resident("VmHWM"), steady)  # the kernel's high-water mark lags by some pages
    found = {"held_bytes": work.held_bytes(model), "peak_bytes": peak, "steady_bytes": steady}
    print(json.dumps(found))


if __name__ == "__main__":
    _answer(*sys.argv[1:7])
