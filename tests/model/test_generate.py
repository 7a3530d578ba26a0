"""Generation on a toy model: the same tokens however they are asked for, and whole text only."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashvl import FlashVL
from flashvl.chat import ChatError, encode_prompt
from flashvl.generate import (
    ContextError,
    Conversation,
    Request,
    Result,
    _Answer,
    chat,
    generate,
    generate_batch,
)
from flashvl.image import ImageError, image_to_inputs, load_image
from flashvl.sampling import SamplingParams, sample
from flashvl.tokenizer import Tokenizer
from tests.model.toy_model import picture, toy_model
from tests.model.toy_text import toy_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FlashVL:
    return toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("toy"), vocab_size=280)


def by_hand(model: FlashVL, image: Any, question: str, steps: int, **controls: Any) -> list[int]:
    """The public model surface in a plain loop, with all logits written out."""
    params = SamplingParams(**controls)
    generator = params.generator()
    parts = image_to_inputs(load_image(image), model.config.image)
    rows = torch.cat([model.embed_image(*part) for part in parts])
    assert model.tokenizer is not None
    ids = encode_prompt(model.tokenizer, question, [len(rows)])
    logits, cache = model.prefill(model.embed(torch.tensor(ids), rows))
    tokens: list[int] = []
    while True:
        tokens.append(sample(logits, params, generator, [*ids, *tokens]))
        if len(tokens) == steps:
            return tokens
        logits = model.decode_step(tokens[-1], cache)


@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"repetition_penalty": 1.5},
        {"temperature": 1.3, "seed": 4},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 0},
    ],
)
def test_tokens_are_those_of_a_plain_loop(model: FlashVL, controls: dict[str, Any]) -> None:
    expected = by_hand(model, picture(0), "hello?", 20, **controls)
    result = generate(model, picture(0), "hello?", 20, ignore_eos=True, **controls)
    assert result.token_ids == expected
    assert len(set(expected)) > 5, "a toy that repeats itself proves nothing"


def test_the_answer_depends_on_image_and_question(model: FlashVL) -> None:
    asked = [
        (picture(0), "hello?"),
        (picture(0) // 3, "hello?"),
        (picture(0), "what is it?"),
        (None, "hello?"),
    ]
    answers = [generate(model, *each, 8, ignore_eos=True).token_ids for each in asked]
    assert len({tuple(answer) for answer in answers}) == 4


def requests() -> list[Request]:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image"}]},
    ]
    draw = SamplingParams(temperature=1.0, seed=7, max_new_tokens=9)
    return [
        Request(picture(0), "hello?", SamplingParams(max_new_tokens=3)),
        Request([picture(1), picture(2, 64, 64)], "what is this? " * 3),
        Request(None, "no image at all", SamplingParams(max_new_tokens=1)),
        Request([picture(3, 200, 10)], turns, draw),
        Request(picture(4), "x", SamplingParams(repetition_penalty=1.4, max_new_tokens=14)),
    ]


def same(ours: Result, theirs: Result) -> bool:
    return (ours.text, ours.token_ids, ours.finish_reason, ours.prompt_tokens) == (
        theirs.text,
        theirs.token_ids,
        theirs.finish_reason,
        theirs.prompt_tokens,
    )


def test_a_batch_of_unequal_prompts_gives_what_one_by_one_gives(model: FlashVL) -> None:
    pieces: dict[int, str] = {}

    def take(index: int, text: str) -> None:
        pieces[index] = pieces.get(index, "") + text

    together = generate_batch(model, requests(), max_new_tokens=12, stream=take)
    alone = [generate_batch(model, [one], max_new_tokens=12)[0] for one in requests()]
    assert len({result.prompt_tokens for result in alone}) == 5
    for index, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
        assert same(ours, theirs), index
        assert pieces.get(index, "") == ours.text
    assert [len(r.token_ids) for r in together if r.finish_reason == "length"] != []


def test_finished_rows_take_no_more_steps(model: FlashVL, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    extend = model.decoder.extend

    def counted(rows: torch.Tensor, spans: Any, cache: Any) -> torch.Tensor:
        sizes.append(len(spans))
        return extend(rows, spans, cache)

    monkeypatch.setattr(model.decoder, "extend", counted)
    lengths = (1, 4, 2)
    asked = [
        Request(None, "hello", SamplingParams(max_new_tokens=n, ignore_eos=True)) for n in lengths
    ]
    results = generate_batch(model, asked)
    assert sizes == [3, 2, 1, 1]
    assert [len(result.token_ids) for result in results] == list(lengths)


def test_no_requests_give_no_results(model: FlashVL) -> None:
    assert generate_batch(model, []) == []


def test_greedy_answers_never_write_the_logits(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(states: torch.Tensor) -> torch.Tensor:
        raise AssertionError("logits were made")

    monkeypatch.setattr(model.decoder, "logits", refuse)
    assert len(generate(model, None, "hello", 3, ignore_eos=True).token_ids) == 3
    with pytest.raises(AssertionError, match="logits were made"):
        generate(model, None, "hello", 3, repetition_penalty=1.1)


def script(model: FlashVL, monkeypatch: pytest.MonkeyPatch, tokens: Iterable[int]) -> None:
    """Makes the model's greedy choices those of `tokens`, one a call."""
    queue = iter(tokens)
    monkeypatch.setattr(model.decoder, "greedy", lambda states: torch.tensor([next(queue)]))


def test_a_stream_has_whole_characters_and_adds_up(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = model.tokenizer
    assert toy is not None
    text = "hello 🙂 é 東京"
    script(model, monkeypatch, [*toy.encode(text), toy.im_end])
    pieces: list[str] = []
    result = generate(model, None, "hello", 99, pieces.append)
    assert result.text == "".join(pieces) == text
    assert "\ufffd" not in result.text and all(pieces)
    assert result.finish_reason == "eos"
    assert result.token_ids == toy.encode(text)


def test_half_a_character_at_the_end_is_one_replacement(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = model.tokenizer
    assert toy is not None
    half = toy.encode("a🙂")[:3]
    for tokens, most in (([*half, toy.eos], 99), (half, 3)):
        script(model, monkeypatch, tokens)
        pieces: list[str] = []
        result = generate(model, None, "hello", most, pieces.append)
        assert result.text == "".join(pieces) == "a\ufffd"


def test_padding_ids_beyond_the_tokenizer_are_silent(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = model.tokenizer
    assert toy is not None and len(toy) < 280
    script(model, monkeypatch, [*toy.encode("a"), 279, *toy.encode("b"), toy.im_end])
    result = generate(model, None, "hello")
    assert (result.text, result.token_ids) == ("ab", [*toy.encode("a"), 279, *toy.encode("b")])


def test_a_stop_string_spans_tokens_and_is_not_shown(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = model.tokenizer
    assert toy is not None
    script(model, monkeypatch, toy.encode("one END two"))
    pieces: list[str] = []
    result = generate(model, None, "hello", 99, pieces.append, stop=["END", "never"])
    assert result.text == "".join(pieces) == "one "
    assert result.finish_reason == "stop"
    assert toy.decode(result.token_ids) == "one END"


def test_the_beginning_of_a_stop_string_appears_once_it_is_none(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = model.tokenizer
    assert toy is not None
    script(model, monkeypatch, [*toy.encode("a EN b E"), toy.im_end])
    pieces: list[str] = []
    result = generate(model, None, "hello", 99, pieces.append, stop=["END"])
    assert result.text == "".join(pieces) == "a EN b E"
    assert not any(piece.endswith(("E", "EN")) for piece in pieces[:-1])
    assert result.finish_reason == "eos"


def cut_by_hand(text: str, stops: list[str]) -> str:
    """What is shown of `text` when it comes character by character."""
    for end in range(1, len(text) + 1):
        starts = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


@given(
    st.text(alphabet="ab", max_size=24),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3),
)
def test_streamed_text_never_holds_a_stop_string(
    toy: Tokenizer, text: str, stops: list[str]
) -> None:
    answer = _Answer(toy, SamplingParams(stop=stops))
    shown = ""
    for token in [*toy.encode(text), toy.im_end]:
        shown += answer.push(token, most=10**6)
        assert not any(stop in shown for stop in stops)
        assert cut_by_hand(text, stops).startswith(shown)
        if answer.reason:
            break
    assert shown == answer.text == cut_by_hand(text, stops)
    assert answer.reason == ("eos" if shown == text else "stop")


def test_length_and_ignored_ends(model: FlashVL, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = model.tokenizer
    assert toy is not None
    tokens = [toy.im_end, *toy.encode("a"), toy.eos, *toy.encode("bc")]
    for ignore, reason, text in ((False, "eos", ""), (True, "length", "ab")):
        script(model, monkeypatch, tokens)
        result = generate(model, None, "hello", 4, ignore_eos=ignore)
        assert (result.finish_reason, result.text) == (reason, text)


def test_context_errors_name_the_lengths(model: FlashVL) -> None:
    toy = model.tokenizer
    assert toy is not None
    used = len(encode_prompt(toy, "x" * 100))
    with pytest.raises(ContextError, match=rf"take {used} positions \(0 image, {used} text\)"):
        generate(model, None, "x" * 100, max_new_tokens=257 - used)
    with pytest.raises(ContextError, match=rf"set max_new_tokens to {256 - used} or less"):
        generate(model, None, "x" * 100, max_new_tokens=1000)
    with pytest.raises(ContextError, match=r"256; shorten it or use fewer images"):
        generate(model, [picture(n) for n in range(9)], "x")
    result = generate(model, None, "x" * 100, 256 - used, ignore_eos=True)
    assert len(result.token_ids) + result.prompt_tokens == 256
    longest = generate(model, None, "x" * 200, ignore_eos=True)
    assert len(longest.token_ids) + longest.prompt_tokens == 256, "the default is what fits"


def test_bad_requests_fail_before_the_model_runs(
    model: FlashVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model ran")

    for name in ("embed_image", "embed"):
        monkeypatch.setattr(model, name, refuse)
    for images, question, error in (
        (picture(0), "  ", ChatError),
        ("no-such-file.png", "hello", ImageError),
        (None, "x" * 300, ContextError),
    ):
        with pytest.raises(error):
            generate_batch(model, [Request(picture(0), "fine"), Request(images, question)])
    with pytest.raises(ValueError, match="temperature"):
        generate(model, None, "hello", temperature=-1)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(model, None, "hello", max_new_tokens=0)


def test_a_model_without_tokenizer_says_what_to_do(model: FlashVL) -> None:
    bare = FlashVL(model.config, "meta")
    with pytest.raises(ValueError, match=r"set model\.tokenizer = Tokenizer\.from_pretrained"):
        generate(bare, None, "hello")


def test_timings_add_up(model: FlashVL) -> None:
    started = time.perf_counter()
    result = generate(
        model, picture(0), "hello", 6, ignore_eos=True, stream=lambda _: time.sleep(0.01)
    )
    wall = time.perf_counter() - started
    times = result.timings
    parts = times.image_s + times.vision_s + times.prefill_s
    assert times.ttft_s == pytest.approx(parts, abs=0.002)
    assert min(times.image_s, times.vision_s, times.prefill_s, times.decode_s) > 0
    assert times.ttft_s + times.decode_s < wall
    assert times.decode_tokens_per_s == pytest.approx(5 / times.decode_s)
    weights = sum(p.nbytes for p in model.parameters())
    assert weights < times.peak_rss_bytes < 2**40
    assert set(result.to_json()["timings"]) == {
        "image_s", "vision_s", "prefill_s", "ttft_s", "decode_s", "decode_tokens_per_s",
        "peak_rss_bytes",
    }  # fmt: skip
    single = generate(model, None, "hello", 1, ignore_eos=True).timings
    assert (single.decode_s, single.decode_tokens_per_s) == (0, 0)


def test_a_conversation_is_its_whole_history(model: FlashVL) -> None:
    talk = Conversation(model, system="Be brief.")
    first = talk.ask("hello?", picture(0), max_new_tokens=5)
    second = talk.ask("and these?", [picture(1, 64, 64), picture(2, 64, 64)], max_new_tokens=5)
    third = talk.ask("why?", max_new_tokens=5)
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nhello?"}]},
        {"role": "assistant", "content": first.text},
        {
            "role": "user",
            "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "\nand these?"}],
        },
        {"role": "assistant", "content": second.text},
        {"role": "user", "content": "why?"},
    ]
    images = [picture(0), picture(1, 64, 64), picture(2, 64, 64)]
    assert same(generate(model, images, history, 5), third)
    assert same(generate(model, images, history[:4], 5), second)
    plain = [history[0], {"role": "user", "content": "hello?"}]
    assert same(generate(model, picture(0), plain, 5), first)


def test_a_failed_turn_leaves_the_conversation_as_it_was(model: FlashVL) -> None:
    talk = Conversation(model)
    talk.ask("hello?", picture(0), max_new_tokens=2)
    before = (list(talk.images), list(talk.messages))
    for question, image in (("", picture(1)), ("x", b"broken"), ("x" * 400, None)):
        with pytest.raises(ValueError):
            talk.ask(question, image)
        assert len(talk.images) == len(before[0]) and talk.messages == before[1]


def test_chat_is_called_like_the_released_models(model: FlashVL) -> None:
    messages = [{"role": "user", "content": "hello?"}]
    greedy = chat(model, picture(0), messages, do_sample=False, max_new_tokens=6)
    assert greedy == generate(model, picture(0), messages, 6).text
    assert model.chat(picture(0), messages, max_new_tokens=6) == greedy
    drawn = [
        chat(model, picture(0), messages, True, 12, temperature=3.0, seed=n) for n in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_training_works_after_generating(model: FlashVL) -> None:
    """Nothing that generation caches may be an inference tensor."""
    generate(model, picture(0), "hello", 2)
    rows = torch.randn(1, 3, model.config.decoder.dim, requires_grad=True)
    model.decoder.forward_train(rows).square().sum().backward()
    assert rows.grad is not None and float(rows.grad.abs().sum()) > 0
