"""From pieces of text to tokens: count them, and turn them into ids. One class per level.

Line ends. A newline is a token, `<eos>`. A last line without newline gets its `<eos>` too, but only in a text
that has a newline somewhere: a text of one endless line (text8) has no lines, so no `<eos>`.

`<unk>` in the text of PTB and WikiText is the word type `<unk>` at level word. At level char it is the five
characters that it is spelt with, as in the usual character-level figures for PTB.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tpdist.data.vocabulary import EOS, UNK, Level
from tpdist.errors import DataError

MAX_WORD_CHARACTERS = 1 << 20
MAX_COUNTED_TYPES = 4_000_000
"""Bounds the memory of counting to less than 1 GiB: a counted type takes about 200 bytes."""

NEWLINE = ord("\n")
CODE_POINTS = 0x110000


class Words:
    """Tokens are what stands between white space."""

    def count(self, pieces: Iterable[str], name: str, most: int | None = None) -> dict[str, int]:
        """Occurrences of every type among the first `most` tokens, or all. `name` is the text's, for messages."""
        counts: Counter[str] = Counter()
        for words in first(split_words(pieces, name), most):
            counts.update(words)
            if len(counts) > MAX_COUNTED_TYPES:
                raise DataError(
                    f"{name}: more than {MAX_COUNTED_TYPES:,} different words; that is more than a vocabulary can "
                    "be counted from: use level char, or split the text into words first"
                )
        return counts

    def has_unseen(self, pieces: Iterable[str], name: str, seen: dict[str, int]) -> bool:
        """Whether any token is not in `seen`; stops at the first."""
        return any(not seen.keys() >= set(words) for words in split_words(pieces, name))

    def encode(
        self, pieces: Iterable[str], name: str, types: list[str], most: int | None = None
    ) -> Iterator[NDArray[np.int32]]:
        """Ids of the first `most` tokens, or all, in arrays [n] of about a piece each.

        Raises DataError at an unknown type if there is no `<unk>`.
        """
        index = _Index((token, i) for i, token in enumerate(types))
        index.unk = index.get(UNK)
        for words in first(split_words(pieces, name), most):
            try:
                yield np.fromiter(map(index.__getitem__, words), np.int32, len(words))
            except KeyError as error:
                raise _changed(name, error.args[0]) from None


class _Index(dict[str, int]):
    """Type -> id, with `unk` for the rest; a dict subclass, so that a look-up stays in C."""

    unk: int | None

    def __missing__(self, token: str) -> int:
        if self.unk is None:
            raise KeyError(token)
        return self.unk


class Characters:
    """Tokens are characters (code points). Methods as those of `Words`."""

    def count(self, pieces: Iterable[str], name: str, most: int | None = None) -> dict[str, int]:
        totals = np.zeros(CODE_POINTS, dtype=np.int64)
        for codes in first(split_characters(pieces), most):
            piece = np.bincount(codes)
            totals[: len(piece)] += piece
        return {_character(code): int(totals[code]) for code in np.flatnonzero(totals).tolist()}

    def has_unseen(self, pieces: Iterable[str], name: str, seen: dict[str, int]) -> bool:
        known = np.zeros(CODE_POINTS, dtype=bool)
        known[[_code(token) for token in seen]] = True
        return any(not known[codes].all() for codes in split_characters(pieces))

    def encode(
        self, pieces: Iterable[str], name: str, types: list[str], most: int | None = None
    ) -> Iterator[NDArray[np.int32]]:
        unk = types.index(UNK) if UNK in types else -1
        table = np.full(CODE_POINTS, unk, dtype=np.int32)
        for i, token in enumerate(types):
            if token != UNK:
                table[_code(token)] = i
        for codes in first(split_characters(pieces), most):
            ids = table[codes]
            if unk < 0 and len(ids) and ids.min() < 0:
                raise _changed(name, _character(int(codes[ids.argmin()])))
            yield ids


def tokenizer(level: Level) -> Words | Characters:
    """The tokenizer of a level."""
    return Words() if level == "word" else Characters()


Batch = TypeVar("Batch", list[str], NDArray[np.uint32])


def first(batches: Iterator[Batch], most: int | None) -> Iterator[Batch]:
    """The first `most` tokens of a text that comes in batches; reads no further."""
    if most is None:
        yield from batches
        return
    for batch in batches:
        yield batch[:most]
        most -= len(batch)
        if most <= 0:
            return


def split_words(pieces: Iterable[str], name: str) -> Iterator[list[str]]:
    """Words of a text that comes in pieces; a word may be cut by the border of two pieces."""
    carry, last, has_lines = "", "", False
    for piece in pieces:
        if not piece:
            continue
        last = piece[-1]
        has_lines = has_lines or "\n" in piece
        words = (carry + piece).replace("\n", f" {EOS} ").split()
        carry = words.pop() if not last.isspace() else ""
        if len(carry) > MAX_WORD_CHARACTERS:
            raise DataError(
                f"{name}: a word of more than {MAX_WORD_CHARACTERS:,} characters; use level char, "
                "or split the text into words first"
            )
        yield words
    rest = [carry] if carry else []
    if has_lines and last != "\n":
        rest.append(EOS)
    yield rest


def split_characters(pieces: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
    """Code points of a text that comes in pieces, "\\n" standing for `<eos>`."""
    last, has_lines = "", False
    for piece in pieces:
        if not piece:
            continue
        last = piece[-1]
        has_lines = has_lines or "\n" in piece
        yield np.frombuffer(piece.encode("utf-32-le"), dtype="<u4")
    if has_lines and last != "\n":
        yield np.array([NEWLINE], dtype=np.uint32)


def _character(code: int) -> str:
    return EOS if code == NEWLINE else chr(code)


def _code(token: str) -> int:
    return NEWLINE if token == EOS else ord(token)


def _changed(name: str, token: str) -> DataError:
    return DataError(f"{name}: holds {token!r}, which was not there at first; it changed while it was read")
