from __future__ import annotations

import pytest

from flashvl.chat import ChatError, encode_conversation, encode_prompt
from flashvl.tokenizer import Tokenizer
from tests.model.toy_text import toy_tokenizer

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "hello"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("toy"))


def shown(toy: Tokenizer, ids: list[int]) -> str:
    """The ids as text, control tokens spelled out and each sentinel as [i] or [.]."""
    spelled = {-200: "[i]", -201: "[.]"}
    out, text = "", []
    for token in [*ids, None]:
        if token is not None and token >= 0:
            text.append(token)
            continue
        out += toy.decode(text, skip_special=False) + spelled.get(token, "")
        text = []
    return out


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def test_plain_chatml(toy: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("hello?"),
        {"role": "assistant", "content": "hello!"},
        user("Why?"),
    ]
    assert shown(toy, encode_prompt(toy, messages)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello?<|im_end|>\n"
        "<|im_start|>assistant\nhello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_ids_are_those_of_qwen2s_template(toy: Tokenizer) -> None:
    """The text between two control tokens is encoded in one piece, as Qwen2's template does."""
    expected = [toy.im_start, *toy.encode("user\n\nhello"), toy.im_end, *toy.encode("\n")]
    assert encode_prompt(toy, "\nhello")[: len(expected)] == expected
    both = toy.encode("\n\n")
    assert len(both) == 1 and both[0] in expected, "two line ends are one token here"


def test_images_stand_before_the_first_user_text(toy: Tokenizer) -> None:
    messages = [{"role": "system", "content": "s"}, user("a"), user("b")]
    assert shown(toy, encode_prompt(toy, messages, [3, 1])) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n[i][.][.][i]\na<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )


def test_parts_put_images_anywhere_and_a_trailing_one_stays(toy: Tokenizer) -> None:
    messages = [
        user([TEXT, IMAGE, TEXT, TEXT]),
        {"role": "assistant", "content": "ok"},
        user([TEXT, IMAGE]),
    ]
    assert shown(toy, encode_prompt(toy, messages, [1, 2])) == (
        "<|im_start|>user\nhello[i]hellohello<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n"
        "<|im_start|>user\nhello[i][.]<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_question_alone_is_a_conversation(toy: Tokenizer) -> None:
    assert encode_prompt(toy, "hello", [2]) == encode_prompt(toy, [user("hello")], [2])


def test_the_answer_mask_covers_answers_and_their_ends(toy: Tokenizer) -> None:
    messages = [
        user("1?"),
        {"role": "assistant", "content": "one"},
        user("2?"),
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
    ]
    ids, mask = encode_conversation(toy, messages, [4])
    answers = [token for token, is_answer in zip(ids, mask, strict=True) if is_answer]
    assert toy.decode(answers, skip_special=False) == "one<|im_end|>two<|im_end|>"
    assert shown(toy, ids).endswith("<|im_start|>assistant\ntwo<|im_end|>\n")


@pytest.mark.parametrize("answer", ["one", "\none", "\n\n", " one", ""])
def test_training_sees_the_prompt_that_generation_starts_from(toy: Tokenizer, answer: str) -> None:
    question = [user("hello")]
    ids, mask = encode_conversation(toy, [*question, {"role": "assistant", "content": answer}], [3])
    assert ids[: mask.index(True)] == encode_prompt(toy, question, [3])


@pytest.mark.parametrize("question", ["", "  \n", [IMAGE], [IMAGE, {"type": "text", "text": " "}]])
def test_an_empty_question_says_what_to_do(toy: Tokenizer, question: object) -> None:
    with pytest.raises(ChatError, match=r"messages\[0\] asks nothing.*ask something"):
        encode_prompt(toy, [user(question)], [1])


@pytest.mark.parametrize(
    ("messages", "images", "match"),
    [
        ([user([IMAGE, TEXT])], [], "hold 1 image parts but 0 images"),
        ([user([IMAGE, TEXT])], [1, 1], "hold 1 image parts but 2 images"),
        ([{"role": "system", "content": "s"}], [1], "no message has the role user"),
        ([user("hello")], [0], "image tokens is 0"),
        ([], [], "messages is empty"),
        ("", [], "asks nothing"),
        (
            [user("a"), {"role": "assistant", "content": "b"}],
            [],
            "end with a turn of the assistant",
        ),
        ([{"role": "tool", "content": "a"}], [], "role 'tool'; needs one of system, user"),
        ([{"role": ["user"], "content": "a"}], [], "needs one of system, user"),
        ([{"role": "user"}], [], r"messages\[0\] must be"),
        (["hello"], [], r"messages\[0\] must be"),
        ([user(3)], [], "content must be text or a list of parts, got int"),
        ([user(["hello"])], [], r"messages\[0\] content\[0\] must be"),
        ([user([{"type": "text"}])], [], r"content\[0\] must be"),
        ([user([{"type": "video"}])], [], r"content\[0\] must be"),
        ([{"role": "assistant", "content": [IMAGE]}], [1], "only the user shows images"),
    ],
)
def test_what_cannot_be_encoded_is_named(
    toy: Tokenizer, messages: object, images: list[int], match: str
) -> None:
    with pytest.raises(ChatError, match=match):
        encode_prompt(toy, messages, images)  # type: ignore[arg-type]
