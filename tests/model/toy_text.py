"""A toy tokenizer of Qwen2's kind: the 256 bytes, a few merges, the three control tokens."""

from __future__ import annotations

import json
from pathlib import Path

from flashvl.tokenizer import QWEN2_PATTERN, Tokenizer, byte_alphabet

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("i", "m"), ("Ċ", "Ċ")]
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def vocabulary() -> dict[str, int]:
    """256 bytes, then one token for each merge."""
    tokens = [*sorted(byte_alphabet()), *(a + b for a, b in MERGES)]
    return {token: number for number, token in enumerate(tokens)}


def write_pieces(folder: Path, added: bool = True) -> Path:
    """vocab.json, merges.txt and added_tokens.json in `folder`."""
    vocab = vocabulary()
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in MERGES)]
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if added:
        ids = {text: len(vocab) + n for n, text in enumerate(ADDED)}
        (folder / "added_tokens.json").write_text(json.dumps(ids), encoding="utf-8")
    return folder


def tokenizer_json() -> dict[str, object]:
    """The same tokenizer in tokenizer.json's form, with traps: a BOS template and truncation."""
    vocab = vocabulary()
    split = {
        "type": "Split",
        "pattern": {"Regex": QWEN2_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + n, "content": text, "special": True, **flags}
        for n, text in enumerate(ADDED)
    ]
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "<|endoftext|>": {
                    "id": "<|endoftext|>",
                    "ids": [len(vocab)],
                    "tokens": ["<|endoftext|>"],
                }
            },
        },
        "decoder": to_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [f"{a} {b}" for a, b in MERGES],
        },
    }


def toy_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """A loaded toy tokenizer of 266 ids."""
    return Tokenizer.from_pretrained(write_pieces(folder), vocab_size)
