"""OpenVINO on random weights of our model's shapes: SigLIP through its PyTorch frontend, Qwen2
through optimum-intel, which gives the stateful form with the cache inside.

Settings it is at its best with here: performance hint LATENCY, as many threads as we use,
inference precision bf16 (f32 for the format f32), weights compressed by NNCF to symmetric int8 or
int4 in groups of 128, and the vocabulary computed for the last position only, which optimum's
export does not do of itself: over 300 positions it would be a sixth of the prefill's work.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import protocol
import torch
import transformers

ASKED = protocol.settings()
CONFIG, FORMAT = ASKED["config"], ASKED["format"]
BITS = {"int8": 8, "int4": 4}


def compiled(path: Path, slice_logits: bool) -> Any:
    """The model at `path`, ready to run."""
    core = ov.Core()
    model = core.read_model(path)
    if slice_logits:
        _last_position_only(model)
    return core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": ASKED["threads"],
            "INFERENCE_PRECISION_HINT": "f32" if FORMAT == "f32" else "bf16",
        },
    ).create_infer_request()


def _last_position_only(model: Any) -> None:
    from openvino import opset13

    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    ends = [np.array([n], np.int64) for n in (-1, np.iinfo(np.int64).max, 1, 1)]
    last = opset13.slice(node.input_value(0), *ends)
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def vision_model() -> Path:
    """The encoder's file; made on first use."""
    path = Path(ASKED["folder"]) / "model.xml"
    if not path.exists():
        kinds = {
            "siglip2": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
            "aimv2": (transformers.Aimv2VisionConfig, transformers.Aimv2VisionModel),
        }
        config_kind, kind = kinds[CONFIG["kind"]]
        torch.manual_seed(0)
        model = kind(config_kind(**CONFIG["fields"])).eval()
        side = CONFIG["fields"]["image_size"]
        with torch.no_grad():
            converted = ov.convert_model(
                _Features(model), example_input=torch.zeros(1, 3, side, side)
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        ov.save_model(converted, path, compress_to_fp16=FORMAT != "f32")
    return path


class _Features(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).last_hidden_state


def decoder_model() -> Path:
    """The decoder's file; made on first use, in a folder that appears whole or not at all."""
    folder = Path(ASKED["folder"])
    path = folder / "openvino_model.xml"
    if not path.exists():
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        source, unfinished = folder.with_suffix(".source"), folder.with_suffix(".partial")
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**CONFIG["fields"])
        transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
        quantization: Any = None
        if FORMAT in BITS:
            options = {"group_size": 128, "ratio": 1.0} if FORMAT == "int4" else {}
            quantization = OVWeightQuantizationConfig(bits=BITS[FORMAT], sym=True, **options)
        made = OVModelForCausalLM.from_pretrained(
            source, export=True, compile=False, load_in_8bit=False,
            quantization_config=quantization,
        )  # fmt: skip
        made.save_pretrained(unfinished)
        unfinished.rename(folder)
        shutil.rmtree(source)
    return path


class Decoder:
    """A prompt and steps after it; the cache is the request's state."""

    def __init__(self) -> None:
        self.request = compiled(decoder_model(), slice_logits=True)
        self.inputs = {name.get_any_name() for name in self.request.model_inputs}
        self.past, self.batch = 0, 1

    def run(self, ids: np.ndarray) -> None:
        batch, count = ids.shape
        positions = np.arange(self.past, self.past + count)[None].repeat(batch, 0)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, self.past + count), np.int64),
            "position_ids": positions,
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self.request.infer({name: given[name] for name in self.inputs})
        self.past += count

    def prompt(self, batch: int = 1) -> dict[str, Any]:
        self.request.reset_state()
        self.past, self.batch = 0, batch
        ids = np.random.default_rng(0).integers(0, CONFIG["fields"]["vocab_size"], ASKED["prompt"])
        whole = np.tile(ids.astype(np.int64), (batch, 1))
        return protocol.timed(lambda: self.run(whole))

    def step(self) -> dict[str, Any]:
        ids = np.full((self.batch, 1), 7, np.int64)
        return protocol.timed(lambda: self.run(ids))


def start() -> dict[str, protocol.Handler]:
    if ASKED["part"] == "decoder":
        decoder = Decoder()
        return {"prompt": decoder.prompt, "step": decoder.step}
    request = compiled(vision_model(), slice_logits=False)
    side = CONFIG["fields"]["image_size"]
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    return {"vision": lambda: protocol.timed(lambda: request.infer({0: pixels}))}


if __name__ == "__main__":
    protocol.serve(start)
