"""Reading in pieces gives what reading at once gives, wherever the pieces end."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpdist.data import tokens
from tpdist.data.text import FileText
from tpdist.data.tokens import tokenizer
from tpdist.data.vocabulary import EOS, UNK, choose_types
from tpdist.errors import DataError

TEXT = st.text(alphabet="ab é中😀\t\n\r\u2028\x85\xa0", max_size=60)


def oracle(text: str, level: str) -> list[str]:
    """Plainly: read at once, line by line."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\n" not in text:
        return text.split() if level == "word" else list(text)
    tokens = []
    for line in text.removesuffix("\n").split("\n"):
        tokens += [*(line.split() if level == "word" else line), EOS]
    return tokens


@pytest.mark.parametrize("level", ["word", "char"])
@given(text=TEXT, chunk=st.integers(1, 9), bom=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_pieces_of_any_size_give_the_same_tokens(tmp_path: Path, level, text: str, chunk: int, bom: bool):
    if not text:
        return
    path = tmp_path / "text"
    raw = text.encode("utf-8-sig" if bom else "utf-8")
    path.write_bytes(raw)
    source = FileText(path, chunk_bytes=chunk)
    expected = oracle(text, level)
    pieces = list(source.pieces())
    assert pieces[-1][1] == len(raw)
    counts = tokenizer(level).count((piece for piece, _ in pieces), "text")
    assert counts == Counter(expected)
    types = sorted(counts)
    ids = [i for batch in tokenizer(level).encode((p for p, _ in pieces), "text", types) for i in batch.tolist()]
    assert [types[i] for i in ids] == expected


@given(begin=st.integers(0, 30), length=st.integers(0, 30), chunk=st.integers(1, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_of_a_file_is_cut_at_exact_bytes(tmp_path: Path, begin: int, length: int, chunk: int):
    raw = b"".join(b"%02d" % i for i in range(30))
    path = tmp_path / "text"
    path.write_bytes(raw)
    part = FileText(path, begin, begin + length, ascii=True, lines=False, chunk_bytes=chunk)
    pieces = list(part.pieces())
    assert "".join(piece for piece, _ in pieces) == raw[begin : begin + length].decode()
    assert pieces[-1][1] == length


def test_a_part_that_is_no_longer_there_is_not_read_as_a_shorter_text(tmp_path: Path):
    (tmp_path / "text").write_bytes(b"a b c")
    with pytest.raises(DataError, match=r"text: ended 2 bytes early; it changed while it was read"):
        list(FileText(tmp_path / "text", 1, 7).pieces())


def test_more_types_than_can_be_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens, "MAX_COUNTED_TYPES", 3)
    assert tokenizer("word").count(["a b c a "], "text") == {"a": 2, "b": 1, "c": 1}
    with pytest.raises(DataError, match=r"text: more than 3 different words; .* use level char"):
        tokenizer("word").count(["a b c d "], "text")


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize(
    ("raw", "offset"),
    [(b"ab \xff cd", 3), ("é中".encode() + b"\xc3(", 5), (b"abc\xe4\xb8", 3), (b"\xe4\xb8\xad\x80", 3)],
)
def test_the_byte_offset_of_bad_utf8(tmp_path: Path, raw: bytes, offset: int, chunk: int):
    path = tmp_path / "text"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"byte {offset}: not UTF-8"):
        list(FileText(path, chunk_bytes=chunk).pieces())


def test_an_unknown_type_without_unk_means_that_the_file_changed():
    for level in ("word", "char"):
        with pytest.raises(DataError, match="changed while it was read"):
            list(tokenizer(level).encode(["a b"], "text", ["a", " "]))  # type: ignore[arg-type]


def test_unk_takes_what_is_not_in_the_vocabulary():
    (ids, _) = tokenizer("word").encode(["a b c "], "text", ["a", UNK])
    assert ids.tolist() == [0, 1, 1]
    (ids,) = tokenizer("char").encode(["abc"], "text", ["a", UNK])
    assert ids.tolist() == [0, 1, 1]


COUNTS = st.dictionaries(st.sampled_from([*"abcdefgh", EOS, UNK]), st.integers(1, 9), min_size=1)


@given(counts=COUNTS, max_types=st.none() | st.integers(2, 12), min_count=st.integers(1, 5), unseen=st.booleans())
def test_choice_of_types(counts: dict[str, int], max_types: int | None, min_count: int, unseen: bool):
    types, kept = choose_types(counts, max_types, min_count, unseen)
    assert max_types is None or len(types) <= max_types
    assert sum(kept) == sum(counts.values())
    assert list(zip(types, kept, strict=True)) == sorted(zip(types, kept, strict=True), key=lambda x: (-x[1], x[0]))
    assert (EOS in types) == (EOS in counts)
    assert (UNK in types) == (unseen or UNK in counts or not set(counts) <= set(types))
    regular = {token: counts[token] for token in types if token != UNK}
    assert all(count >= min_count for token, count in regular.items() if token != EOS)
    left_out = [count for token, count in counts.items() if token not in types and count >= min_count]
    if left_out:  # only for want of room, and then the rarest
        assert len(types) == max_types
        assert max(left_out) <= min((count for token, count in regular.items() if token != EOS), default=10)
