"""Bad input and the one line that it gets. `{d}` is the directory of the inputs, `{o}` the store's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpdist.config import Data, Synthetic
from tpdist.data import prepare
from tpdist.errors import TpdistError

GOOD = b"a b a b\n"
Files = dict[str, bytes | dict[str, list[Any]]]

# name: (files, options, the line)
CASES: dict[str, tuple[Files, dict[str, Any], str]] = {
    "missing file": ({}, {"train": "nowhere.txt"}, "{d}/nowhere.txt: no such file"),
    "empty file": ({"train.txt": b""}, {}, "{d}/train.txt: empty file"),
    "directory for a file": ({"sub/x": GOOD}, {"valid": "sub"}, "{d}/sub: a directory, where a file is expected"),
    "device": (
        {},
        {"train": "/dev/null"},
        "/dev/null: not a regular file; it is read twice, so pipes and devices will not do",
    ),
    "binary": (
        {"train.txt": b"\x7fELF\x00\x01"},
        {},
        "{d}/train.txt: byte 4: a NUL byte; this is a binary file, not text",
    ),
    "binary past the first chunk": (
        {"train.txt": b"a b\n" * 300_000 + b"\0"},
        {},
        "{d}/train.txt: byte 1200000: a NUL byte; this is a binary file, not text",
    ),
    "invalid UTF-8": (
        {"train.txt": b"caf\xe9 au lait\n"},
        {},
        "{d}/train.txt: byte 3: not UTF-8 (0xe9); convert the file to UTF-8",
    ),
    "invalid UTF-8 across chunks": (
        {"test.txt": b"x" * ((1 << 20) - 1) + b"\xe2\x82\n" * 2},
        {"level": "char"},
        "{d}/test.txt: byte 1048575: not UTF-8 (0xe2); convert the file to UTF-8",
    ),
    "UTF-8 cut at the end": (
        {"valid.txt": b"a b\n\xe4\xb8"},
        {},
        "{d}/valid.txt: byte 4: not UTF-8 (0xe4); convert the file to UTF-8",
    ),
    "UTF-16": (
        {"train.txt": "a b\n".encode("utf-16")},
        {},
        "{d}/train.txt: byte 0: UTF-16 text: save it as UTF-8",
    ),
    "gzip": ({"train.txt": b"\x1f\x8b\x08\x00"}, {}, "{d}/train.txt: byte 0: a gzip file: unpack it first"),
    "zip": ({"train.txt": b"PK\x03\x04\x14\x00"}, {}, "{d}/train.txt: byte 0: a zip file: unpack it first"),
    "white space only": (
        {"valid.txt": b"   \t "},
        {},
        "valid.txt: the valid split has 0 tokens; at least 2 are needed",
    ),
    "one token": ({"train.txt": b"a"}, {}, "train.txt: the train split has 1 tokens; at least 2 are needed"),
    "endless word": (
        {"train.txt": b"x" * (3 << 20)},
        {},
        "train.txt: a word of more than 1,048,576 characters; use level char, or split the text into words first",
    ),
    "not a Parquet file": (
        {"train.parquet": b"PAR1 or not"},
        {"train": "train.parquet"},
        "{d}/train.parquet: not a readable Parquet file: Parquet magic bytes not found in footer. Either the file is "
        "corrupted or this is not a parquet file.",
    ),
    "Parquet without the column": (
        {"train.parquet": {"body": ["a"], "id": [1]}},
        {"train": "train.parquet"},
        "{d}/train.parquet: no column 'text'; it has 'body', 'id'",
    ),
    "Parquet column of numbers": (
        {"train.parquet": {"body": ["a"], "id": [1]}},
        {"train": "train.parquet", "column": "id"},
        "{d}/train.parquet: column 'id' holds int64, not strings; cast it to string",
    ),
    "NUL in Parquet": (
        {"train.parquet": {"text": ["a", "b\0"]}},
        {"train": "train.parquet"},
        "{d}/train.parquet: row 1: a NUL character; this is not text",
    ),
    "text without files": (
        {},
        {"valid": None, "test": None},
        "data.valid, data.test: recipe text needs it: tpdist data prepare text --train FILE --valid FILE --test FILE "
        "--out stores/text-word",
    ),
    "ptb without a directory": (
        {},
        {"recipe": "ptb", "max_types": 5},
        "data.source: recipe ptb needs it: tpdist data prepare ptb --source DIR --max-types 5 --out stores/ptb-word",
    ),
    "ptb from a missing directory": (
        {},
        {"recipe": "ptb", "source": "nowhere"},
        "{d}/nowhere: no such directory; recipe ptb takes the directory of its text files",
    ),
    "ptb from a file": (
        {},
        {"recipe": "ptb", "source": "train.txt"},
        "{d}/train.txt: a file; recipe ptb takes the directory of its text files",
    ),
    "wikitext from another directory": (
        {},
        {"recipe": "wikitext", "source": "."},
        "{d}: recipe wikitext looks for wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens or wiki.train.raw, "
        "wiki.valid.raw, wiki.test.raw in this directory; not all are there",
    ),
    "text8 that is not ASCII": (
        {"text8": "na\u00efve words here".encode()},
        {"recipe": "text8", "source": "text8"},
        "{d}/text8: byte 2: not ASCII (0xc3); text8 is plain ASCII, for other text use recipe text",
    ),
    "text8 that is too short": (
        {"text8": b"a b c d e"},
        {"recipe": "text8", "source": "text8"},
        "{d}/text8, which is cut 90/5/5: the valid split has 0 tokens; at least 2 are needed; give a longer file",
    ),
    "text of one line": (
        {"one.txt": b"a b c d e"},
        {"source": "one.txt"},
        "{d}/one.txt, which is cut 90/5/5 at ends of lines: the valid split has 0 tokens; at least 2 are needed; give "
        "more lines (break long ones), or --train, --valid and --test",
    ),
    "synthetic characters": (
        {},
        {"recipe": "synthetic", "level": "char"},
        "data.level: recipe synthetic has words only",
    ),
    "synthetic with a cut": (
        {},
        {"recipe": "synthetic", "max_types": 5},
        "data.max_types: recipe synthetic has exactly data.synthetic.types types",
    ),
    "synthetic with fewer tokens": (
        {},
        {"recipe": "synthetic", "max_tokens": 5},
        "data.max_tokens: recipe synthetic has exactly data.synthetic.tokens tokens",
    ),
    "synthetic, branching above types": (
        {},
        {"recipe": "synthetic", "synthetic": Synthetic(types=4, branching=5)},
        "data.synthetic.branching: 5 different types in a state, but there are only 4 types; at most "
        "data.synthetic.types",
    ),
    "synthetic, too many states": (
        {},
        {"recipe": "synthetic", "synthetic": Synthetic(states=100_000)},
        "data.synthetic.states: 100000 hidden states; at most 4096",
    ),
    "synthetic, too many types": (
        {},
        {"recipe": "synthetic", "synthetic": Synthetic(types=999_999_999)},
        "data.synthetic.types: 999,999,999 types; at most 10,000,000",
    ),
    "synthetic, too many branches": (
        {},
        {"recipe": "synthetic", "synthetic": Synthetic(types=9_000_000, states=4000, branching=9_000_000)},
        "data.synthetic.branching: 9,000,000 different types in each of 4,000 states; at most 2,500",
    ),
    "synthetic, too many tokens": (
        {},
        {"recipe": "synthetic", "synthetic": Synthetic(tokens=99_999_999_999_999)},
        "data.synthetic.tokens: 99,999,999,999,999 tokens; at most 2,147,483,648",
    ),
}
PATHS = ("train", "valid", "test", "source")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_one_line_and_leaves_nothing(tmp_path: Path, name: str):
    files, options, line = CASES[name]
    given = tmp_path / "given"
    given.mkdir()
    for file, content in {"train.txt": GOOD, "valid.txt": GOOD, "test.txt": GOOD, **files}.items():
        path = given / file
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            pq.write_table(pa.table(content), path)
        else:
            path.write_bytes(content)
    values = {"recipe": "text", "train": "train.txt", "valid": "valid.txt", "test": "test.txt", **options}
    data = Data(**{key: str(given / value) if key in PATHS and value else value for key, value in values.items()})
    with pytest.raises(TpdistError) as caught:
        prepare(data, tmp_path / "stores" / "store")
    assert str(caught.value) == line.format(d=given)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "stores").exists()


Setup = Callable[[Path], Path]


def occupied(directory: Path) -> Path:
    (directory / "mine").mkdir()
    (directory / "mine" / "notes.txt").write_text("keep me")
    return directory / "mine"


def a_file(directory: Path) -> Path:
    (directory / "mine").write_text("keep me")
    return directory / "mine"


def a_store(directory: Path) -> Path:
    prepare(Data(), directory / "mine")
    return directory / "mine"


def under_a_file(directory: Path) -> Path:
    return a_file(directory) / "store"


@pytest.mark.parametrize(
    ("setup", "line"),
    [
        (occupied, "{o}: exists and holds other files; it is not overwritten: give another directory or delete it"),
        (a_store, "{o}: exists and holds a store; it is not overwritten: give another directory or delete it"),
        (a_file, "{o}: exists and is a file; give another directory"),
        (under_a_file, "{d}/mine: a file, where a directory is expected"),
    ],
)
def test_nothing_is_overwritten(tmp_path: Path, setup: Setup, line: str):
    out = setup(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TpdistError) as caught:
        prepare(Data(), out)
    assert str(caught.value) == line.format(o=out, d=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
