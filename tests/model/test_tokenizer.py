from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from flashvl.tokenizer import StreamDecoder, Tokenizer, TokenizerError
from tests.model.toy_text import tokenizer_json, toy_tokenizer, vocabulary, write_pieces


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("toy"))


def transformers_qwen2(folder: Path):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    return transformers.Qwen2Tokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )


@given(st.text())
def test_decoding_gives_the_text_back_composed(toy: Tokenizer, text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        return
    ids = toy.encode(text)
    assert toy.decode(ids) == unicodedata.normalize("NFC", text)
    assert not set(ids) & {toy.im_start, toy.im_end, toy.eos}


def test_merges_apply_in_order(toy: Tokenizer) -> None:
    vocab = vocabulary()
    assert toy.encode("hello world") == [vocab[t] for t in ("hello", "Ġw", "o", "r", "l", "d")]


def test_digits_are_single_tokens_and_text_matches_transformers(tmp_path: Path) -> None:
    ours = toy_tokenizer(tmp_path)
    theirs = transformers_qwen2(tmp_path)
    for text in ("hello world", "I'll pay 1234 $!", "a\n\n  b\t", "東京 é́ 🙂", "  im im", "x\r\n"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_both_file_layouts_agree_and_template_and_truncation_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    pieces = toy_tokenizer(tmp_path / "pieces")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    whole = Tokenizer.from_pretrained(tmp_path)
    text = "hello, hello, hello and some more words than four"
    assert whole.encode(text) == pieces.encode(text)
    assert (whole.im_start, whole.im_end, whole.eos) == (264, 265, 263)
    assert (pieces.im_start, pieces.im_end, pieces.eos) == (264, 265, 263)


def test_the_trap_in_tokenizer_json_is_real(tmp_path: Path) -> None:
    """The library itself would cut and prefix: the test above is not empty."""
    raw = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json()))
    assert raw.encode("hello, hello, hello").ids[0] == 263
    assert len(raw.encode("hello, hello, hello").ids) == 4
    assert 265 in raw.encode("<|im_end|>").ids


def test_added_tokens_are_found_in_tokenizer_config(tmp_path: Path) -> None:
    write_pieces(tmp_path, added=False)
    decoder = {
        str(300 + n): {"content": text, "special": special}
        for n, (text, special) in enumerate(
            [
                ("<|endoftext|>", True),
                ("<|im_start|>", True),
                ("<|im_end|>", True),
                ("<tool>", False),
            ]
        )
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    toy = Tokenizer.from_pretrained(tmp_path)
    assert (toy.eos, toy.im_start, toy.im_end, len(toy)) == (300, 301, 302, 304)
    assert toy.decode([300, 302, 303]) == "<tool>"
    assert 303 not in toy.encode("<tool>")
    assert toy.decode([280]) == "", "an id in a gap of the table stands for nothing"


def test_control_tokens_decode_only_when_asked(toy: Tokenizer) -> None:
    ids = [toy.im_start, *toy.encode("hello"), toy.im_end]
    assert toy.decode(ids) == "hello"
    assert toy.decode(ids, skip_special=False) == "<|im_start|>hello<|im_end|>"


def test_padding_ids_decode_to_nothing_up_to_vocab_size(tmp_path: Path) -> None:
    toy = toy_tokenizer(tmp_path, vocab_size=512)
    assert toy.decode([511, *toy.encode("a"), 300]) == "a"
    with pytest.raises(TokenizerError, match=r"512 is outside 0\.\.511"):
        toy.decode([512])


@pytest.mark.parametrize("bad", [-1, -200, 266, 10**12])
def test_ids_out_of_range_are_named(toy: Tokenizer, bad: int) -> None:
    with pytest.raises(TokenizerError, match=str(bad)):
        toy.decode([bad])
    with pytest.raises(TokenizerError, match=str(bad)):
        StreamDecoder(toy).push(bad)


@given(st.lists(st.integers(0, 265)), st.booleans())
def test_a_stream_adds_up_to_decode_and_is_always_whole(
    toy: Tokenizer, ids: list[int], skip: bool
) -> None:
    stream = StreamDecoder(toy, skip)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    data = b"".join(toy.token_bytes(token) for token in ids if not (skip and toy.is_special(token)))
    assert "".join(pieces) == data.decode("utf-8", errors="replace") == toy.decode(ids, skip)


def test_a_character_of_four_bytes_comes_out_at_its_last(toy: Tokenizer) -> None:
    ids = toy.encode("🙂")
    stream = StreamDecoder(toy)
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂"]
    assert stream.finish() == ""


def test_half_a_character_at_the_end_becomes_a_replacement(toy: Tokenizer) -> None:
    stream = StreamDecoder(toy)
    assert [stream.push(token) for token in toy.encode("é")[:1]] == [""]
    assert stream.finish() == "\ufffd"


def test_no_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"needs tokenizer\.json, or vocab\.json"):
        Tokenizer.from_pretrained(tmp_path)
    write_pieces(tmp_path, added=False)
    with pytest.raises(TokenizerError, match=r"added_tokens\.json is not"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer.json", "{", "cannot be read as JSON"),
        ("tokenizer.json", "[]", "must hold a JSON object"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', r"model\.vocab"),
        ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {}}}', "byte-level BPE"),
        ("vocab.json", '{"a": -1}', "non-negative"),
        ("vocab.json", '{"a": "b"}', "non-negative"),
        ("merges.txt", "a b c", "line 1 must be two tokens"),
        ("merges.txt", "nosuch token", "not a usable BPE"),
        ("added_tokens.json", '{"<|im_start|>": true}', "non-negative integer id"),
        ("added_tokens.json", '{"<|im_start|>": 300}', r"no added token <\|im_end\|>"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, match: str) -> None:
    write_pieces(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=match):
        Tokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_json_cut_short_anywhere_is_a_clear_error(tmp_path: Path) -> None:
    text = json.dumps(tokenizer_json())
    for cut in range(1, len(text) - 1, len(text) // 50):
        (tmp_path / "tokenizer.json").write_text(text[:cut])
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            Tokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_without_all_bytes_never_drops_text(tmp_path: Path) -> None:
    vocab = {token: n for token, n in vocabulary().items() if token != "z"}
    write_pieces(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    toy = Tokenizer.from_pretrained(tmp_path)
    assert toy.decode(toy.encode("pia")) == "pia"
    with pytest.raises(TokenizerError, match=r"no tokens for some characters of 'pizza'"):
        toy.encode("pizza")
