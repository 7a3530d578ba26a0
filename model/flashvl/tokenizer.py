"""Text to token ids and back: Qwen2's byte-level BPE, with text always treated as data.

The `tokenizers` library does the BPE. What is ours is the boundary: `encode` works on a copy of the
tokenizer that has no added tokens, so that `<|im_end|>` typed by a user is ten ordinary characters
and never the token that ends a turn (control ids are placed by `flashvl.chat` only); `decode` works
on bytes, so that a stream of tokens can be cut anywhere without producing half a UTF-8 character.

The layout of the files (tokenizer.json, or vocab.json + merges.txt + added_tokens.json), the
pre-tokenizer pattern and the NFC normaliser are those published with Qwen2; the byte alphabet is
GPT-2's.
"""

from __future__ import annotations

import codecs
import json
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

# Contractions; letters with at most one leading mark; digits one by one; punctuation; spaces.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded, text it cannot encode, or an id it does not have."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's one printable character per byte: itself where it prints, else the next free one from
    256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(rest)}


class Tokenizer:
    """Byte-level BPE whose `encode` never yields a control token.

    Ids up to `vocab_size` that have no token (Qwen2 pads 151,646 tokens to 151,936 rows) decode to
    nothing.
    """

    def __init__(
        self,
        plain: tokenizers.Tokenizer,
        added: dict[int, str],
        special: Iterable[int] | None = None,
        vocab_size: int | None = None,
        source: str = "tokenizer",
    ) -> None:
        """plain: a BPE without added tokens. added: id -> text of each added token. special: those
        of `added` that `decode` leaves out, all by default. source: the name to use in errors."""
        self.source = source
        self._plain = plain
        self._special = frozenset(added if special is None else special)
        alphabet = byte_alphabet()
        self._bytes = {
            token_id: _token_bytes(token, alphabet) for token, token_id in plain.get_vocab().items()
        }
        self._bytes |= {token_id: text.encode("utf-8") for token_id, text in added.items()}
        self._size = max(1 + max(self._bytes, default=-1), vocab_size or 0)
        by_text = {text: token_id for token_id, text in added.items()}
        missing = [name for name in ("<|im_start|>", "<|im_end|>") if name not in by_text]
        if missing:
            raise TokenizerError(
                f"{source}: no added token {' or '.join(missing)}, which ChatML needs; "
                "add it to added_tokens.json (or to added_tokens in tokenizer.json)"
            )
        self.im_start = by_text["<|im_start|>"]
        self.im_end = by_text["<|im_end|>"]
        self.eos = by_text.get("<|endoftext|>", self.im_end)

    @classmethod
    def from_pretrained(cls, folder: str | Path, vocab_size: int | None = None) -> Tokenizer:
        """Reads tokenizer.json, or vocab.json + merges.txt with added_tokens.json, from a
        checkpoint folder."""
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return _from_tokenizer_json(folder / "tokenizer.json", vocab_size)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _from_vocab_and_merges(folder, vocab_size)
        raise TokenizerError(
            f"{folder}: no tokenizer found; needs tokenizer.json, or vocab.json with merges.txt "
            "(and added_tokens.json), beside config.json"
        )

    def __len__(self) -> int:
        """One more than the largest id that `decode` takes."""
        return self._size

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: `<|im_end|>` and `<|endoftext|>`."""
        return frozenset((self.im_end, self.eos))

    def encode(self, text: str) -> list[int]:
        """Ids of `text` (after NFC). Whatever the text holds, no id is that of an added token."""
        if not isinstance(text, str):
            raise TokenizerError(f"text must be a str, got {type(text).__name__}")
        lone = next((n for n, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
        if lone is not None:
            raise TokenizerError(
                f"text holds half a surrogate pair ({text[lone]!r}) at character {lone}, which is "
                "not text; decode its bytes with errors='replace' first"
            )
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        normal = self._plain.normalizer.normalize_str(text) if self._plain.normalizer else text
        if b"".join(self._bytes[n] for n in ids) != normal.encode("utf-8"):
            raise TokenizerError(
                f"{self.source}: no tokens for some characters of {_short(text)}; "
                "the vocabulary must hold all 256 bytes"
            )
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for: often part of a character, nothing for a padding id."""
        index = operator.index(token_id)
        if not 0 <= index < self._size:
            raise TokenizerError(
                f"{self.source}: token id {index} is outside 0..{self._size - 1}"
                + ("; image sentinels are not text: drop negative ids first" if index < 0 else "")
            )
        return self._bytes.get(index, b"")

    def is_special(self, token_id: int) -> bool:
        """True for control tokens, which `decode` leaves out."""
        return token_id in self._special

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        stream = StreamDecoder(self, skip_special)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.finish()


class StreamDecoder:
    """Decodes one id at a time, holding back bytes until they make whole characters.

    The concatenation of all `push` results and `finish` equals `Tokenizer.decode` of the same ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes, possibly none."""
        data = self._tokenizer.token_bytes(token_id)
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._utf8.decode(data)

    def finish(self) -> str:
        """U+FFFD if an incomplete character is held back, else nothing."""
        return self._utf8.decode(b"", final=True)


def _token_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode("utf-8")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(content, kind):
        raise TokenizerError(
            f"{path}: must hold a JSON {'object' if kind is dict else kind.__name__}, "
            f"got {type(content).__name__}"
        )
    return content


def _from_tokenizer_json(path: Path, vocab_size: int | None) -> Tokenizer:
    spec = _read_json(path, dict)
    model = spec.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{path}: field model.vocab is missing or not an object")
    if model.get("type", "BPE") != "BPE" or not _mentions_byte_level(spec.get("pre_tokenizer")):
        raise TokenizerError(
            f"{path}: needs a byte-level BPE (model.type BPE with a ByteLevel pre_tokenizer), "
            f"got model.type {model.get('type')!r}"
        )
    added, special = _added_from_list(path, spec.get("added_tokens") or [])
    # Without these, nothing a user types can become a control token, be cut or be padded.
    spec |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    names = {added[token_id] for token_id in special}
    vocab = {token: n for token, n in model["vocab"].items() if token not in names}
    spec["model"] = model | {"vocab": vocab, "unk_token": None}
    plain = _build(path, lambda: tokenizers.Tokenizer.from_str(json.dumps(spec)))
    return Tokenizer(plain, added, special, vocab_size, str(path))


def _mentions_byte_level(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    inner = node.get("pretokenizers")
    return node.get("type") == "ByteLevel" or (
        isinstance(inner, list) and any(_mentions_byte_level(item) for item in inner)
    )


def _added_from_list(path: Path, entries: Any) -> tuple[dict[int, str], set[int]]:
    added: dict[int, str] = {}
    special: set[int] = set()
    for entry in entries if isinstance(entries, list) else [entries]:
        token_id, text = (
            (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        )
        if type(token_id) is not int or token_id < 0 or not isinstance(text, str):
            raise TokenizerError(
                f"{path}: an added token needs a non-negative integer id and a text content, "
                f"got {_short(json.dumps(entry))}"
            )
        added[token_id] = text
        if entry.get("special", True):
            special.add(token_id)
    return added, special


def _from_vocab_and_merges(folder: Path, vocab_size: int | None) -> Tokenizer:
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocab = _read_json(vocab_path, dict)
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise TokenizerError(
                f"{vocab_path}: the id of {_short(token)} must be a non-negative integer, "
                f"got {_short(json.dumps(token_id))}"
            )
    added, special = _added_beside(folder)
    names = set(added.values())
    vocab = {token: n for token, n in vocab.items() if token not in names}
    merges = _read_merges(merges_path)

    def build() -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        plain.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        plain.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
        return plain

    return Tokenizer(_build(merges_path, build), added, special, vocab_size, str(folder))


def _added_beside(folder: Path) -> tuple[dict[int, str], set[int]]:
    """Added tokens of added_tokens.json, else of tokenizer_config.json, where Qwen2 keeps them
    too."""
    path = folder / "added_tokens.json"
    if path.is_file():
        entries = [{"id": n, "content": text} for text, n in _read_json(path, dict).items()]
        return _added_from_list(path, entries)
    path = folder / "tokenizer_config.json"
    by_id = _read_json(path, dict).get("added_tokens_decoder") if path.is_file() else None
    if not isinstance(by_id, dict) or not all(isinstance(entry, dict) for entry in by_id.values()):
        raise TokenizerError(
            f"{folder}: vocab.json and merges.txt are there but added_tokens.json is not; "
            "it must map <|im_start|>, <|im_end|> and <|endoftext|> to their ids"
        )
    entries = [entry | {"id": int(n) if n.isdecimal() else n} for n, entry in by_id.items()]
    return _added_from_list(path, entries)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        # Not splitlines: characters such as U+0085 are part of the byte alphabet, not line ends.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise TokenizerError(f"{path}: line {number} must be two tokens, got {_short(line)}")
        merges.append((pair[0], pair[1]))
    return merges


def _build(path: Path, build: Any) -> tokenizers.Tokenizer:
    try:
        return build()
    except BaseException as error:  # the library's Rust panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise TokenizerError(f"{path}: not a usable BPE ({error}); fetch it again") from error
