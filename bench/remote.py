"""Peers in other environments: a process that holds the model and is told "do one call now".

So sides can take turns although their libraries cannot share a process (OpenVINO's tools bring
another torch). The server times its own call; the pipe is not in the figure. Before and after each
call the client rests for a moment: the threads of an OpenMP library spin for some milliseconds
after its last work, on cores that the other side is about to use.

`make peers` creates the environments; FLASHVL_PEERS names another folder. Models with random
weights are made on first use and kept there (static_2b: 12 GB for all formats).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flashvl import FlashVLConfig
from flashvl.config import DecoderConfig, VisionConfig

SERVERS = {"openvino": "openvino_server.py", "llama.cpp": "llama_server.py"}
ENVIRONMENTS = {"openvino": "openvino", "llama.cpp": "llama"}
REST = 0.005


class RemoteError(RuntimeError):
    """The peer is not installed, died, or refused; the text says which and why."""


def folder() -> Path:
    """Where the environments and their models are."""
    return Path(os.environ.get("FLASHVL_PEERS", ".peers")).absolute()


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment. RemoteError says how to get it."""
    found = folder() / ENVIRONMENTS[name] / "bin" / "python"
    if not found.exists():
        raise RemoteError(f"not installed ({found} is missing): make peers")
    return found


class Remote:
    """One peer with one model. Use as a context manager; requests raise RemoteError.

    environment: variables of its process beside those inherited.
    """

    def __init__(
        self,
        name: str,
        asked: dict[str, Any],
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        server = Path(__file__).parent / "peers" / SERVERS.get(name, "")
        command = command or [str(python_of(name)), str(server)]
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_PRELOAD")}
        threads = str(torch.get_num_threads())
        self._process = subprocess.Popen(
            [*command, json.dumps(asked)],
            env={
                **inherited,
                "OMP_NUM_THREADS": threads,
                "HF_HUB_OFFLINE": "1",
                **(environment or {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("FLASHVL_PEERS_LOG") else sys.stderr,
            text=True,
        )
        self._read()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RemoteError(f"died with status {self._process.wait()}") from error
        return self._read()

    def seconds(self, do: str, **arguments: Any) -> float:
        """The time of one call, as the server measured it."""
        time.sleep(REST)
        took = float(self.ask(do, **arguments)["seconds"])
        time.sleep(REST)
        return took

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RemoteError(f"died with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise RemoteError(str(answer["error"]))
        return answer


def open_decoder(
    name: str, config: FlashVLConfig, weights: str, prompt: int, steps: int, batch: int
) -> Remote:
    """The decoder on a peer, after one prompt and step to see that it runs."""
    asked: dict[str, Any] = {
        "part": "decoder", "format": weights, "config": qwen2_fields(config.decoder),
        "prompt": prompt, "steps": steps, "batch": batch, "threads": torch.get_num_threads(),
    }  # fmt: skip
    asked["folder"] = str(_models(name, asked["config"], weights))
    failure = RemoteError("no variant")
    for extra in (True, False) if name == "llama.cpp" else (False,):
        try:
            remote = Remote(name, {**asked, "extra_buffers": extra})
            remote.ask("prompt", batch=1)
            remote.ask("step")
            return remote
        except RemoteError as error:
            failure = error
    raise failure


def open_vision(name: str, config: FlashVLConfig, weights: str) -> Remote:
    """The encoder on a peer, after one call."""
    asked: dict[str, Any] = {
        "part": "vision", "format": weights, "config": vision_fields(config.vision),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    asked["folder"] = str(_models(name, asked["config"], weights))
    remote = Remote(name, asked)
    remote.ask("vision")
    return remote


def _models(name: str, fields: dict[str, Any], weights: str) -> Path:
    key = f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
    return folder() / "models" / f"{ENVIRONMENTS[name]}-{key}-{weights}"


def qwen2_fields(c: DecoderConfig) -> dict[str, Any]:
    """A Qwen2Config's arguments, and what llama.cpp wants beside them."""
    fields: dict[str, Any] = {
        "hidden_size": c.dim, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "intermediate_size": c.mlp, "vocab_size": c.vocab,
        "rms_norm_eps": c.eps, "max_position_embeddings": c.max_positions,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return {"fields": fields, "head_dim": c.head_dim, "rope_theta": c.rope_theta}


def vision_fields(c: VisionConfig) -> dict[str, Any]:
    """A SiglipVisionConfig's or Aimv2VisionConfig's arguments."""
    fields: dict[str, Any] = {
        "hidden_size": c.dim, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "intermediate_size": c.mlp, "patch_size": c.patch, "image_size": c.tile_px,
    }  # fmt: skip
    if c.kind == "siglip2":
        head = {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False}
        return {"kind": c.kind, "fields": {**fields, "layer_norm_eps": c.eps, **head}}
    head = {"use_head": False, "is_native": False}
    return {"kind": c.kind, "fields": {**fields, "rms_norm_eps": c.eps, **head}}
