"""Trains the tiny model's tokenizer: byte-level BPE with Qwen2's normaliser and split, 512 entries.

    python -m flashvl.train.make_tokenizer [OUTPUT]

The corpus is every question and answer the generators can ask, so common words become one token;
any other text still encodes, byte by byte. Qwen2's split takes digits one at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from flashvl.train import digits, scenes
from flashvl.train.canvas import COLOURS, SHAPES

VOCABULARY = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYSTEM = "You are a helpful assistant."
# Words people also type, to fill the vocabulary with something better than single bytes.
EVERYDAY = """
Hello! Please describe this image. What is in the picture? What can you see here? Can you tell me
what this is? Is there a person, a dog, a cat, a car or a house in it? Where is it and what does it
look like? Who wrote that? Which one is the biggest, and which one is the smallest? Answer with one
word. I see two of them, but not all of these. Thank you very much, that was good. How does it work?
Read the text out loud. Count to ten. Are they the same size? It has been written by hand, top to
bottom, on white paper. Give me the first and the last letter. Why do you think so? That's wrong.
"""
# Qwen2's pre-tokenizer pattern, as in its released tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> Iterator[str]:
    """Every text of a conversation the generators can produce, ChatML's role lines included."""
    for role in ("system", "user", "assistant"):
        yield from [f"{role}\n"] * 100
    yield from [SYSTEM] * 100
    yield from [*digits.READ, digits.HOW_MANY_DIGITS] * 100
    yield from [scenes.COUNT_ALL, "yes", "no"] * 100
    yield EVERYDAY.replace("\n", " ")
    yield from "0123456789"
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for shape in SHAPES:
        for template in scenes.ASK_COLOUR:
            yield template.format(shape=shape)
        yield scenes.COUNT_SHAPE.format(plural=scenes.plural(shape))
    for colour in COLOURS:
        for template in scenes.ASK_SHAPE:
            yield template.format(colour=colour)
        yield scenes.COUNT_COLOUR.format(colour=colour)
    yield from [*SHAPES, *COLOURS, *names] * 10
    for relation in scenes.RELATIONS:
        for second in names:
            yield scenes.ASK_OBJECT.format(relation=relation, second=second)
            for first in names:
                yield scenes.ASK_RELATION.format(first=first, relation=relation, second=second)


def train() -> Tokenizer:
    """The tokenizer; the same on every run."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def main() -> None:
    default = Path(__file__).parents[1] / "assets" / "tiny" / "tokenizer.json"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    tokenizer = train()
    path.write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    print(f"{path}: {tokenizer.get_vocab_size()} entries, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
