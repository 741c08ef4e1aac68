"""The recipes: published token counts, splits, the embedded corpus."""

from pathlib import Path

import pytest

from tpdist.config import Data, Synthetic
from tpdist.data import default_store, prepare, text
from tpdist.data.opening import check_options
from tpdist.data.python_docs import normalise, paragraphs, python_docs, split_paragraphs
from tpdist.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("recipe", "directory", "tokens", "types"),
    [
        ("ptb", "ptb", (929_589, 73_760, 82_430), 10_000),
        ("wikitext", "wikitext2", (2_088_628, 217_646, 245_569), 33_278),
    ],
)
def test_published_counts(benchmark_texts: Path, tmp_path: Path, recipe, directory: str, tokens, types: int):
    store = prepare(Data(recipe=recipe, source=str(benchmark_texts / directory)), tmp_path / "store")
    assert tuple(store.manifest.tokens.values()) == tokens
    assert len(store.vocabulary) == types
    assert store.manifest.dtype == "uint16"
    store.verify()


def test_ptb_characters_spell_unk_out(benchmark_texts: Path, tmp_path: Path):
    """50 types, as in the usual character-level PTB (`<unk>` is the characters < u n k >)."""
    store = prepare(Data(recipe="ptb", source=str(benchmark_texts / "ptb"), level="char"), tmp_path / "store")
    assert len(store.vocabulary) == 50
    assert "<unk>" not in store.vocabulary.types
    raw = (benchmark_texts / "ptb" / "ptb.valid.txt").read_text()
    assert store.vocabulary.decode(store.tokens("valid").read(0, len(raw))) == raw


def test_wikitext_takes_raw_files(tmp_path: Path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.raw").write_text(" = A = \n a b c \n")
    store = prepare(Data(recipe="wikitext", source=str(tmp_path)), tmp_path / "store")
    assert store.manifest.tokens["train"] == 8
    assert store.manifest.sources["valid"].name == "wiki.valid.raw"


@pytest.mark.parametrize("source", ["text8", "."])
def test_text8_is_cut_90_5_5_and_has_no_lines(tmp_path: Path, source: str):
    text = "".join(chr(97 + i % 26) if i % 7 else " " for i in range(2000))
    (tmp_path / "text8").write_text(text)
    data = Data(recipe="text8", source=str(tmp_path / source), level="char")
    store = prepare(data, tmp_path / "chars")
    assert tuple(store.manifest.tokens.values()) == (1800, 100, 100)
    read = {s: store.vocabulary.decode(store.tokens(s).read(0, n)) for s, n in store.manifest.tokens.items()}
    assert "".join(read.values()) == text
    assert "<eos>" not in store.vocabulary.types
    words = prepare(data.model_copy(update={"level": "word"}), tmp_path / "words")
    assert words.manifest.tokens["train"] == len(text[:1800].split())
    assert words.tokenize("ab\ncd") == ["ab", "cd"]
    assert store.tokenize("a\nb") == ["a", " ", "b"]


def test_text8_with_newlines(tmp_path: Path):
    """Which stands for a space."""
    (tmp_path / "t").write_text("ab cd\n" * 50)
    store = prepare(Data(recipe="text8", source=str(tmp_path / "t")), tmp_path / "store")
    assert set(store.vocabulary.types) == {"ab", "cd"}


def test_one_file_is_cut_at_ends_of_lines(tmp_path: Path):
    lines = [f"wörd{i} " * (1 + i % 5) + "\n" for i in range(200)]
    file = tmp_path / "my.txt"
    file.write_text("".join(lines), encoding="utf-8")
    data = Data(recipe="text", source=str(file), level="char")
    store = prepare(data, tmp_path / "store")
    read = [store.vocabulary.decode(store.tokens(split).read(0, n)) for split, n in store.manifest.tokens.items()]
    assert "".join(read) == "".join(lines)
    assert all(part.endswith("\n") for part in read)
    sizes = [len(part.encode()) for part in read]
    longest = max(len(line.encode()) for line in lines)
    assert 0 <= sizes[0] - 0.9 * file.stat().st_size <= longest
    assert 0 <= sizes[0] + sizes[1] - 0.95 * file.stat().st_size <= longest
    check_options(store, data)
    file.write_text("another\n" * 100)
    with pytest.raises(DataError, match=r"my\.txt has 800"):
        check_options(store, data)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_one_length_are_cut_where_they_should_be(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text, "CHUNK_BYTES", 3)
    (tmp_path / "my.txt").write_bytes(f"a b c{end}".encode() * 20)
    store = prepare(Data(recipe="text", source=str(tmp_path / "my.txt")), tmp_path / "store")
    assert tuple(store.manifest.tokens.values()) == (18 * 4, 4, 4)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_where_the_next_line_begins(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk)
    raw = b"ab\r\n\r\rc\n\nd\r\ne"
    (tmp_path / "t").write_bytes(raw)
    begins = [0, *(found.end() for found in text.LINE_END.finditer(raw)), len(raw)]
    for at in range(len(raw) + 1):
        assert text.end_of_line(tmp_path / "t", at) == min(begin for begin in begins if begin >= at)


def test_one_file_that_cannot_be_cut(tmp_path: Path):
    (tmp_path / "one line.txt").write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z")
    with pytest.raises(DataError, match="valid"):
        prepare(Data(recipe="text", source=str(tmp_path / "one line.txt")), tmp_path / "store")
    (tmp_path / "a.parquet").write_text("PAR1")
    with pytest.raises(ConfigError, match="cut as text"):
        prepare(Data(recipe="text", source=str(tmp_path / "a.parquet")), tmp_path / "store")
    with pytest.raises(DataError, match="nowhere"):
        prepare(Data(recipe="text", source=str(tmp_path / "nowhere")), tmp_path / "store")


def test_python_docs_leaks_nothing(tmp_path: Path):
    texts = python_docs("word")
    lines = {split: text.text.splitlines() for split, text in texts.items()}
    every = [line for part in lines.values() for line in part]
    assert len(set(every)) == len(every) > 1000
    store = prepare(Data(), tmp_path / "store")
    tokens = store.manifest.tokens
    total = sum(tokens.values())
    assert total > 50_000
    assert 0.05 < tokens["valid"] / total < 0.12
    assert 0.05 < tokens["test"] / total < 0.12
    assert store.manifest.options["min_count"] == 2
    regular = [c for t, c in zip(store.vocabulary.types, store.vocabulary.counts, strict=True) if t[0] != "<"]
    assert min(regular) >= 2
    assert store.tokenize("The cat's (x)\nY\n") == ["the", "cat's", "(", "x", ")", "<eos>", "y", "<eos>"]


def test_python_docs_normalisation():
    text = "Title\n*****\n\nSee a.b,  and\n  c->d.\n\nsee a.b, and c->d.\n\n+---+---+\n\nlast…"
    assert paragraphs(text, "word") == ["title", "see a . b , and c -> d .", "last …"]
    assert paragraphs(text, "char") == ["title", "see a.b, and c->d.", "last…"]
    assert normalise("a --- b -- c", "char") == "a b -- c"
    assert normalise("It’s `x == y`, ...", "word") == "it's ` x == y ` , ..."


def test_python_docs_deals_runs():
    dealt = split_paragraphs([str(i) for i in range(50)])
    assert dealt["valid"] == ["20", "21", "44", "45"]
    assert dealt["test"] == ["22", "23", "46", "47"]
    assert len(dealt["train"]) == 42


def test_default_stores_do_not_collide():
    assert default_store(Data()) == Path("stores/python-docs-word")
    assert default_store(Data(recipe="ptb", level="char")) == Path("stores/ptb-char")
    assert default_store(Data(store="elsewhere")) == Path("elsewhere")
    first = default_store(Data(recipe="synthetic"))
    changed = [
        default_store(Data(recipe="synthetic", synthetic=Synthetic(**{name: 101})))
        for name in ("types", "states", "branching", "tokens", "seed")
        if name != "branching"
    ]
    assert len({first, *changed}) == 5
