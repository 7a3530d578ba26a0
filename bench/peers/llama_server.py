"""llama.cpp on random weights of our decoder's shapes, written with the gguf package (bf16, q8_0,
q4_0; tokenizer model "none").

Settings it is at its best with here: flash attention, one micro-batch for the whole prompt, as many
threads as we use for both, and its extra buffers (AMX, repacked weights) where they run: the client
asks with them first and without them where that process dies, as it did in 0.3.36 on q8_0 and q4_0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import protocol
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

ASKED = protocol.settings()
FIELDS = ASKED["config"]["fields"]
TYPES = {
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "int8": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "int4": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a Qwen2, under llama.cpp's names."""
    dim, mlp, vocab = (FIELDS[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    width = FIELDS["num_attention_heads"] * ASKED["config"]["head_dim"]
    kv = FIELDS["num_key_value_heads"] * ASKED["config"]["head_dim"]
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, dim)}
    for layer in range(FIELDS["num_hidden_layers"]):
        parts = {
            "attn_norm.weight": (dim,), "ffn_norm.weight": (dim,),
            "attn_q.weight": (width, dim), "attn_q.bias": (width,),
            "attn_k.weight": (kv, dim), "attn_k.bias": (kv,),
            "attn_v.weight": (kv, dim), "attn_v.bias": (kv,),
            "attn_output.weight": (dim, width), "ffn_gate.weight": (mlp, dim),
            "ffn_up.weight": (mlp, dim), "ffn_down.weight": (dim, mlp),
        }  # fmt: skip
        found |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    return found | {"output_norm.weight": (dim,), "output.weight": (vocab, dim)}


def model_file() -> Path:
    """The GGUF file; made on first use."""
    path = Path(ASKED["folder"] + ".gguf")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, file_type = TYPES[ASKED["format"]]
    unfinished = path.with_suffix(".partial")
    writer = GGUFWriter(unfinished, "qwen2")
    writer.add_block_count(FIELDS["num_hidden_layers"])
    writer.add_context_length(FIELDS["max_position_embeddings"])
    writer.add_embedding_length(FIELDS["hidden_size"])
    writer.add_feed_forward_length(FIELDS["intermediate_size"])
    writer.add_head_count(FIELDS["num_attention_heads"])
    writer.add_head_count_kv(FIELDS["num_key_value_heads"])
    writer.add_rope_freq_base(ASKED["config"]["rope_theta"])
    writer.add_layer_norm_rms_eps(FIELDS["rms_norm_eps"])
    writer.add_vocab_size(FIELDS["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(file_type)
    random = np.random.default_rng(0)
    for name, shape in shapes().items():
        values = random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            norm = name.endswith("norm.weight")
            writer.add_tensor(name, (0.02 * values + (1.0 if norm else 0.0)).astype(np.float32))
            continue
        packed = quants.quantize(values * (3 * shape[1]) ** -0.5, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


class Decoder:
    """A prompt and steps after it, through the C interface."""

    def __init__(self) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts = ASKED["extra_buffers"]
        loaded = llama_cpp.llama_model_load_from_file(str(model_file()).encode(), model)
        if not loaded:
            raise RuntimeError("llama.cpp does not load the file it was given")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = ASKED["batch"] * (ASKED["prompt"] + ASKED["steps"] + 8)
        context.n_batch = context.n_ubatch = max(512, ASKED["prompt"])
        context.n_seq_max = ASKED["batch"]
        context.n_threads = context.n_threads_batch = ASKED["threads"]
        self.context = llama_cpp.llama_init_from_model(loaded, context)
        self.tokens = llama_cpp.llama_batch_init(max(512, ASKED["prompt"]), 0, 1)
        self.past, self.batch = 0, 1

    def run(self, sequences: range, first: int, count: int) -> None:
        batch, place = self.tokens, 0
        for sequence in sequences:
            for i in range(count):
                batch.token[place] = (i * 7919 + 7) % FIELDS["vocab_size"]
                batch.pos[place] = first + i
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = i == count - 1
                place += 1
        batch.n_tokens = place
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        llama_cpp.llama_get_logits_ith(self.context, -1)  # waits for the result

    def prompt(self, batch: int = 1) -> dict[str, Any]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.past, self.batch = ASKED["prompt"], batch
        took = protocol.timed(lambda: self.run(range(1), 0, ASKED["prompt"]))
        for sequence in range(1, batch):
            self.run(range(sequence, sequence + 1), 0, ASKED["prompt"])
        return took

    def step(self) -> dict[str, Any]:
        took = protocol.timed(lambda: self.run(range(self.batch), self.past, 1))
        self.past += 1
        return took


def start() -> dict[str, protocol.Handler]:
    decoder = Decoder()
    return {"prompt": decoder.prompt, "step": decoder.step}


if __name__ == "__main__":
    protocol.serve(start)
