r"""Conversations to token ids: plain ChatML, as Qwen2 and the released Flash-VL use it.

    <|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n

An image of n tokens stands in the ids as the sentinels [-200] + [-201] * (n - 1), written here and
nowhere else: text is encoded as data, so that `<image>` or `<|im_end|>` inside it are ordinary
characters. No system prompt is added; Qwen2's own template adds "You are a helpful assistant.",
which is a message like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashvl.tokenizer import Tokenizer

IMAGE_FIRST = -200
IMAGE_REST = -201
ROLES = ("system", "user", "assistant")
AFTER_IMAGE = "\n"  # after the images that a plain string is asked about; parts get nothing added

Part = str | None  # text, or None where an image stands
Turn = tuple[str, list[Part]]


class ChatError(ValueError):
    """A conversation that cannot be encoded; the text says which message and what to do."""


def image_ids(tokens: int) -> list[int]:
    """The sentinels of one image of `tokens` decoder tokens."""
    if tokens < 1:
        raise ChatError(f"image tokens is {tokens}; an image needs at least one")
    return [IMAGE_FIRST] + [IMAGE_REST] * (tokens - 1)


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]] | str,
    image_tokens: Sequence[int] = (),
) -> list[int]:
    """Ids of a conversation that ends with the user's turn, up to where the answer begins.

    messages: a question, or [{"role": "system"|"user"|"assistant", "content": text or parts}],
    where parts are {"type": "text", "text": ...} and {"type": "image"}. image_tokens: decoder
    tokens of each image, in the order of the image parts. Without any image part, all images stand
    before the first user text.
    """
    turns = _turns(messages, len(image_tokens))
    if turns[-1][0] != "user":
        raise ChatError(
            f"messages end with a turn of the {turns[-1][0]}; end them with the user's question"
        )
    ids, _ = _encode(tokenizer, turns, image_tokens)
    return [*ids, tokenizer.im_start, *tokenizer.encode("assistant\n")]


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], image_tokens: Sequence[int] = ()
) -> tuple[list[int], list[bool]]:
    """Ids of a whole conversation and, for each, whether it is part of an answer (for a training
    loss).

    An answer is the assistant's text and the `<|im_end|>` that closes it. The ids up to an answer
    are exactly those that `encode_prompt` gives for the messages before it.
    """
    return _encode(tokenizer, _turns(messages, len(image_tokens)), image_tokens)


def _encode(
    tokenizer: Tokenizer, turns: list[Turn], image_tokens: Sequence[int]
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    answer: list[bool] = []
    images = iter(image_tokens)

    def put(tokens: Sequence[int], is_answer: bool = False) -> None:
        ids.extend(tokens)
        answer.extend([is_answer] * len(tokens))

    line_end = tokenizer.encode("\n")
    for role, parts in turns:
        put([tokenizer.im_start])
        if role == "assistant":  # the header alone, as a prompt has it before the answer exists
            put(tokenizer.encode("assistant\n"))
            put(tokenizer.encode("".join(part or "" for part in parts)), is_answer=True)
        else:
            for part in _joined([f"{role}\n", *parts]):
                put(image_ids(next(images)) if part is None else tokenizer.encode(part))
        put([tokenizer.im_end], is_answer=role == "assistant")
        put(line_end)
    return ids, answer


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts as one, since BPE may merge across their border."""
    joined: list[Part] = []
    for part in parts:
        if part is not None and joined and joined[-1] is not None:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _turns(messages: Sequence[Mapping[str, Any]] | str, images: int) -> list[Turn]:
    """Checked turns with every image in its place."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not messages:
        raise ChatError('messages is empty; needs at least [{"role": "user", "content": "..."}]')
    turns = [_turn(number, message) for number, message in enumerate(messages)]
    placed = sum(part is None for _, parts in turns for part in parts)
    if placed == 0 and images:
        turns = _images_first(turns, images)
    elif placed != images:
        raise ChatError(
            f"messages hold {placed} image parts but {images} images were given; pass one image "
            'for each {"type": "image"}, in order'
        )
    _check_questions(turns)
    return turns


def _images_first(turns: list[Turn], images: int) -> list[Turn]:
    for number, (role, parts) in enumerate(turns):
        if role == "user":
            placed: list[Part] = [*[None] * images, AFTER_IMAGE, *parts]
            return [*turns[:number], (role, placed), *turns[number + 1 :]]
    raise ChatError(
        f"{images} images were given but no message has the role user; add the question"
    )


def _turn(number: int, message: object) -> Turn:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ChatError(f'{where} must be {{"role": ..., "content": ...}}, got {message!r:.80}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ChatError(f"{where} has the role {role!r}; needs one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return role, [content]
    if not isinstance(content, Sequence):
        raise ChatError(
            f"{where} content must be text or a list of parts, got {type(content).__name__}"
        )
    parts = [_part(f"{where} content[{n}]", role, part) for n, part in enumerate(content)]
    return role, parts


def _part(where: str, role: str, part: object) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        if role != "user":
            raise ChatError(
                f"{where} is an image in a turn of the {role}; only the user shows images"
            )
        return None
    raise ChatError(
        f'{where} must be {{"type": "text", "text": ...}} or {{"type": "image"}}, got {part!r:.80}'
    )


def _check_questions(turns: list[Turn]) -> None:
    for number, (role, parts) in enumerate(turns):
        text = "".join(part for part in parts if part is not None)
        if role == "user" and not text.strip():
            raise ChatError(
                f"messages[{number}] asks nothing: its text is empty; "
                'ask something, such as "What is this?"'
            )
