"""The adapter for VLMEvalKit, under a stand-in for what VLMEvalKit gives a model and asks of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flashvl import FlashVL
from flashvl.demo import load_questions

NAME = "flashvl.vlmevalkit"
NAN = float("nan")
SHORT = "Answer the question using a single word or phrase."
# As VLMEvalKit sorts them.
KINDS = {
    "MMStar": "MCQ", "AI2D_TEST": "MCQ", "MMBench_TEST_CN_V11": "MCQ", "MME": "Y/N",
    "HallusionBench": "Y/N", "POPE": "Y/N", "MathVista_MINI": "VQA", "MathVision": "VQA",
    "OCRBench": "VQA", "MMVet": "VQA", "LLaVABench": "VQA", "TextVQA_VAL": "VQA",
    "COCO_VAL": "Caption", "MMDU": "MT",
}  # fmt: skip


class BaseModel:
    """What a model meets of vlmeval.vlm.base.BaseModel, written after VLMEvalKit's sources."""

    INTERLEAVE = False
    allowed_types: Sequence[str] = ("text", "image", "video")

    def __init__(self) -> None:
        self.dump_image_func: Callable[[Any], Any] | None = None

    def set_dump_image(self, dump_image_func: Callable[[Any], Any]) -> None:
        self.dump_image_func = dump_image_func

    def dump_image(self, line: Any, dataset: str | None) -> Any:
        assert self.dump_image_func is not None, "set_dump_image comes first"
        return self.dump_image_func(line)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        return False

    def build_prompt(self, line: Any, dataset: str | None = None) -> Any:
        raise NotImplementedError

    def generate_inner(self, message: Any, dataset: str | None = None) -> Any:
        raise NotImplementedError

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> Any:
        for part in message:
            assert set(part) == {"type", "value"} and part["type"] in self.allowed_types
            assert part["type"] == "text" or Path(part["value"]).is_file()
        return self.generate_inner(message, dataset)


def infer(model: Any, lines: Sequence[Mapping[str, Any]], dataset: str) -> list[str]:
    """VLMEvalKit's loop over a data set."""
    model.set_dump_image(lambda line: [line["image_path"]])
    answers = []
    for line in lines:
        assert model.use_custom_prompt(dataset)
        message = model.build_prompt(line, dataset=dataset)
        answers.append(model.generate(message=message, dataset=dataset))
    return answers


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """The adapter, imported with the stand-in in VLMEvalKit's place."""
    stand_in = {name: ModuleType(name) for name in ("vlmeval", "vlmeval.dataset", "vlmeval.vlm")}
    stand_in["vlmeval.vlm.base"] = base = ModuleType("vlmeval.vlm.base")
    base.BaseModel = BaseModel  # type: ignore[attr-defined]
    stand_in["vlmeval.dataset"].DATASET_TYPE = KINDS.__getitem__  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, each in stand_in.items():
            patch.setitem(sys.modules, name, each)
        yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


@pytest.fixture(scope="module")
def tiny(module: Any) -> Any:
    return module.EvaluatedFlashVL("tiny", device="cpu", dtype="float32")


def lines() -> list[dict[str, Any]]:
    """The demo's questions as rows of a data set."""
    return [
        {"index": n, "question": q.question, "answer": q.answer, "image_path": str(q.image)}
        for n, q in enumerate(load_questions())
    ]


def test_the_demo_is_answered_through_the_adapter(tiny: Any) -> None:
    """Under a name whose questions stand alone, as those that the tiny model has learned."""
    asked = lines()
    answers = infer(tiny, asked, "MathVista_MINI")
    direct = [tiny.model.generate(line["image_path"], line["question"]).text for line in asked]
    assert answers == direct
    right = [answer.strip() == line["answer"] for answer, line in zip(answers, asked, strict=True)]
    assert sum(right) >= len(right) - 1, f"{right}; the demo has at most one close call"
    other = [{**line, "image_path": asked[0]["image_path"]} for line in asked]
    assert infer(tiny, other, "MathVista_MINI") != answers, "the image does not matter"


def test_a_checkpoint_in_the_released_layout_answers_the_same(
    module: Any, tiny: Any, tmp_path: Path
) -> None:
    FlashVL.from_pretrained("tiny", dtype=torch.float32).save_pretrained(tmp_path)
    loaded = module.EvaluatedFlashVL(str(tmp_path), device="cpu", dtype=torch.float32)
    few = lines()[:3]
    assert infer(loaded, few, "MathVista_MINI") == infer(tiny, few, "MathVista_MINI")


@pytest.mark.parametrize(
    ("dataset", "after"),
    [
        ("MME", f" {SHORT}"),
        ("HallusionBench", f" Please answer yes or no. {SHORT}"),
        ("POPE", ""),
        ("MathVista_MINI", ""),
        ("MathVision", ""),
        ("OCRBench", " Anylyze the reason for the answer."),
        ("MMVet", " Anylyze the reason for the answer."),
        ("LLaVABench", "\nAnswer this question in detail."),
        ("TextVQA_VAL", f"\n{SHORT}"),
        ("COCO_VAL", ""),
        ("MMStar", "\nAnswer the question directly."),
    ],
)
def test_each_data_set_has_its_words(tiny: Any, dataset: str, after: str) -> None:
    line = {"question": "What is it?", "image_path": "x.png"}
    tiny.set_dump_image(lambda line: line["image_path"])  # one path, not a list, is fine too
    assert tiny.use_custom_prompt(dataset)
    assert tiny.build_prompt(line, dataset) == [
        {"type": "image", "value": "x.png"},
        {"type": "text", "value": f"What is it?{after}"},
    ]


def test_conversations_are_worded_by_vlmevalkit(tiny: Any) -> None:
    assert not tiny.use_custom_prompt("MMDU")


def test_options_are_listed_by_letter(module: Any) -> None:
    line = {"question": "Which?", "hint": "Look.", "A": "red", "B": 3.5, "C": NAN, "D": None}
    assert module.worded(line, "MMStar", "MCQ") == (
        "Look.\nWhich?\nA. red\nB. 3.5\n"
        "Answer with the option's letter from the given choices directly."
    )
    line = {"question": "哪一个?", "hint": NAN, "A": "红", "B": "蓝"}
    assert module.worded(line, "MMBench_TEST_CN_V11", "MCQ") == (
        "哪一个?\nA. 红\nB. 蓝\n请直接回答选项字母。"
    )
    assert module.worded({"question": "哪?"}, "MMStar", "MCQ") == "哪?\n请直接回答问题。"


class Recorder:
    """Keeps what `FlashVL.generate` was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any, dict[str, Any]]] = []

    def generate(self, images: Any, messages: Any, **controls: Any) -> Any:
        self.asked.append((images, messages, controls))
        return type("Result", (), {"text": "yes"})()


MESSAGE = [
    {"type": "text", "value": "First:"},
    {"type": "image", "value": "a.png"},
    {"type": "image", "value": "b.png"},
    {"type": "text", "value": "Same?"},
]


@pytest.fixture
def recorded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Recorder]:
    recorder = Recorder()
    monkeypatch.setattr(tiny, "model", recorder)
    return tiny, recorder


def test_the_first_image_and_all_text_as_the_released_scores(
    recorded: tuple[Any, Recorder],
) -> None:
    adapter, recorder = recorded
    assert adapter.generate_inner(MESSAGE) == "yes"
    assert recorder.asked == [(["a.png"], "First:\nSame?", {"max_new_tokens": 512})]
    adapter.generate_inner([{"type": "text", "value": "Why?"}])
    assert recorder.asked[1][:2] == ([], "Why?")


def test_all_images_in_their_places(
    recorded: tuple[Any, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, recorder = recorded
    monkeypatch.setattr(adapter, "INTERLEAVE", True)
    adapter.generate_inner(MESSAGE)
    content = [
        {"type": "text", "text": "First:"}, {"type": "image"}, {"type": "image"},
        {"type": "text", "text": "\nSame?"},
    ]  # fmt: skip
    expected = ["a.png", "b.png"], [{"role": "user", "content": content}]
    assert recorder.asked[0][:2] == expected


def test_one_image_is_asked_the_same_either_way(
    module: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = lines()[:2]
    plain = infer(tiny, few, "MathVista_MINI")
    monkeypatch.setattr(tiny, "INTERLEAVE", True)
    assert infer(tiny, few, "MathVista_MINI") == plain


def test_only_the_adapter_needs_vlmevalkit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports it is told what is missing."""
    for name in [name for name in sys.modules if name == NAME or name.split(".")[0] == "vlmeval"]:
        monkeypatch.delitem(sys.modules, name)
    if importlib.util.find_spec("vlmeval") is not None:
        pytest.skip("VLMEvalKit is installed here")
    with pytest.raises(ModuleNotFoundError, match="vlmeval"):
        importlib.import_module(NAME)
