"""A Flash-VL checkpoint under VLMEvalKit, on the kernels of this package.

VLMEvalKit (github.com/open-compass/VLMEvalKit) is no requirement of this package: who imports this
module has it installed. docs/vlmevalkit.md says how the class is registered there.

A score depends on the words around a question. They are those of the class that VLMEvalKit has for
the released code (vlmeval/vlm/flash_vl.py), to the letter, one misspelling included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from flashvl.chat import AFTER_IMAGE
from flashvl.model import FlashVL

NEW_TOKENS = 512
SHORT = "Answer the question using a single word or phrase."
REASON = " Anylyze the reason for the answer."

# (part of a data set's name, what follows its questions); the first that fits counts.
YES_OR_NO = (
    ("MME", f" {SHORT}"),
    ("HallusionBench", f" Please answer yes or no. {SHORT}"),
)
OPEN = (
    ("MathVista", ""),
    ("MathVision", ""),
    ("LLaVABench", "\nAnswer this question in detail."),
    ("MMVet", REASON),
    ("OCRBench", REASON),
    ("MTBench_VQA", "\n 请直接回答问题"),
    ("", f"\n{SHORT}"),
)
# In English, and where the question has Chinese in it.
A_LETTER = (
    "\nAnswer with the option's letter from the given choices directly.",
    "\n请直接回答选项字母。",
)
DIRECTLY = "\nAnswer the question directly.", "\n请直接回答问题。"

Message = list[dict[str, str]]
Line = Mapping[str, Any]  # a row of the data set's table; a pandas Series is like one


class EvaluatedFlashVL(BaseModel):
    """Answers greedily, in at most `max_new_tokens`.

    model_path: a checkpoint's folder, or "tiny". device: by default a GPU if there is one. dtype
    (also by name) and weights: as of `FlashVL.from_pretrained`. interleave: show all images, in
    their places; False is what VLMEvalKit's class for the released code does, which is to show
    the first image, and all text behind it.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        model_path: str | Path = "tiny",
        device: str | None = None,
        dtype: torch.dtype | str = torch.bfloat16,
        weights: str = "bf16",
        max_new_tokens: int = NEW_TOKENS,
        interleave: bool = False,
    ) -> None:
        super().__init__()
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.model = FlashVL.from_pretrained(model_path, place, kind, weights)
        self.max_new_tokens = max_new_tokens
        self.INTERLEAVE = interleave

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """All but the conversations of MMDU, which VLMEvalKit words itself."""
        return dataset is None or "MMDU" not in dataset

    def build_prompt(self, line: Line, dataset: str | None = None) -> Message:
        """The images of a row, then its question as this data set's are asked."""
        kind = None if dataset is None else DATASET_TYPE(dataset)
        paths = self.dump_image(line, dataset)
        images = [paths] if isinstance(paths, str) else paths
        return [
            *({"type": "image", "value": path} for path in images),
            {"type": "text", "value": worded(line, dataset or "", kind)},
        ]

    def generate_inner(
        self, message: Sequence[Mapping[str, str]], dataset: str | None = None
    ) -> str:
        """The answer to a message of texts and paths of images."""
        images = [part["value"] for part in message if part["type"] == "image"]
        if not self.INTERLEAVE:
            question = "\n".join(part["value"] for part in message if part["type"] == "text")
            return self._answer(images[:1], question)
        content: list[dict[str, str]] = []
        for part in message:
            if part["type"] == "image":
                content.append({"type": "image"})
                continue
            behind = bool(content) and content[-1]["type"] == "image"
            text = AFTER_IMAGE + part["value"] if behind else part["value"]
            content.append({"type": "text", "text": text})
        return self._answer(images, [{"role": "user", "content": content}])

    def _answer(self, images: list[str], messages: Any) -> str:
        return self.model.generate(images, messages, max_new_tokens=self.max_new_tokens).text


def worded(line: Line, dataset: str, kind: str | None) -> str:
    """The text that is asked. kind: "MCQ", "VQA", "Y/N", ... as VLMEvalKit sorts its data sets."""
    question = str(line["question"])
    after = _after(YES_OR_NO, dataset)
    if after is not None:
        return question + after
    if kind == "MCQ":
        return _with_options(line, question)
    if kind == "VQA":
        return question + (_after(OPEN, dataset) or "")
    return question


def _after(table: Sequence[tuple[str, str]], dataset: str) -> str | None:
    return next((text for part, text in table if part in dataset), None)


def _with_options(line: Line, question: str) -> str:
    hint = line.get("hint")
    options = [
        f"{letter}. {line[letter]}"
        for letter in ascii_uppercase
        if letter in line and _given(line[letter])
    ]
    asked = "\n".join([*([str(hint)] if _given(hint) else []), question, *options])
    english, chinese = A_LETTER if options else DIRECTLY
    return asked + (chinese if _has_chinese(asked) else english)


def _given(value: object) -> bool:
    """An empty cell is NaN, which is not equal to itself."""
    return value is not None and value == value


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
