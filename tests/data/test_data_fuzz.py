"""The readers of text, Parquet and stores against anything: read, or refused in one line.

`$TPDIST_FUZZ_EXAMPLES` sets the number of cases of each test.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarded import guarded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpdist.config import Data
from tpdist.data import Store, open_or_prepare, prepare
from tpdist.data.manifest import SPLITS, STORE_FILES, _checksum
from tpdist.data.store import sha256_of
from tpdist.data.text import FileText, ParquetText
from tpdist.errors import TpdistError

EXAMPLES = int(os.environ.get("TPDIST_FUZZ_EXAMPLES", "200"))
FUZZ = settings(
    max_examples=EXAMPLES, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,],
)  # fmt: skip
SCRAPS = [b"a b\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc3", b"\xa9", b"\0", b"<unk>", b"<eos>", b" "]
SCRAPS += [
    b"\x1f\x8b",
    b"PAR1",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x85",
    b"\x0c",
    "é".encode(),
    b"\n\n",
]
BYTES = st.binary(max_size=60) | st.lists(st.sampled_from(SCRAPS), max_size=20).map(b"".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def read(directory: Path, reader: Callable[[], Any]) -> Any:
    """What `reader` gives, or None where it refuses."""
    refused = None
    with guarded(directory):
        try:
            return reader()
        except TpdistError as error:
            refused = str(error)
    assert refused.isprintable(), refused
    return None


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def garbled(raw: bytes, data: st.DataObject) -> bytes:
    """Some bytes changed, gone or added, at one place or several."""
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(raw)))
        raw = raw[:begin] + data.draw(st.binary(max_size=6)) + raw[begin + data.draw(st.integers(0, 6)) :]
    return raw


@FUZZ
@given(
    st.lists(BYTES, min_size=3, max_size=3),
    st.sampled_from(["word", "char"]),
    st.sampled_from([None, 2, 5]),
    st.sampled_from([None, 1, 3]),
)
def test_any_text(texts: list[bytes], level: str, max_types: int | None, min_count: int | None) -> None:
    with scratch() as directory:
        files = {split: str(directory / f"{split}.txt") for split in SPLITS}
        for path, text in zip(files.values(), texts, strict=True):
            Path(path).write_bytes(text)
        store = directory / "store"
        options = {"level": level, "max_types": max_types, "min_count": min_count, "store": str(store), **files}

        def make() -> Store:
            return open_or_prepare(Data.model_validate({"recipe": "text", **options}))

        made = read(directory, make)
        assert (made is not None) == store.exists()
        if made is not None:
            made.verify()
        assert {path.name for path in directory.iterdir()} - {"store"} == {"test.txt", "train.txt", "valid.txt"}


@FUZZ
@given(BYTES, st.integers(1, 5), st.booleans())
def test_pieces_of_any_size_give_the_same_text(raw: bytes, size: int, lines: bool) -> None:
    with scratch() as directory:
        file = directory / "a.txt"
        file.write_bytes(raw)

        def text(chunk: int) -> str:
            return "".join(piece for piece, _ in FileText(file, lines=lines, chunk_bytes=chunk).pieces())

        whole, cut = read(directory, lambda: text(1 << 20)), read(directory, lambda: text(size))
        # a signature longer than the piece is not seen
        assert whole == cut or (whole is None and raw[:4].startswith((b"\x1f\x8b", b"PK\x03\x04", b"PAR1")))


@pytest.fixture(scope="module")
def parquets(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small files as different writers make them."""
    rows = ["a b", "é\n", None, "", "c" * 50]
    found = []
    for i, options in enumerate(
        [{}, {"compression": "zstd", "version": "1.0"}, {"use_dictionary": False, "data_page_version": "2.0"}]
    ):
        file = tmp_path_factory.mktemp("parquet") / f"{i}.parquet"
        table = pa.table({"n": list(range(5)), "text": pa.array(rows, pa.large_string() if i else pa.string())})
        pq.write_table(table, file, row_group_size=2, **options)
        found.append(file.read_bytes())
    return found


@FUZZ
@given(st.data())
def test_any_parquet_file(parquets: list[bytes], data: st.DataObject) -> None:
    with scratch() as directory:
        file = directory / "a.parquet"
        file.write_bytes(garbled(data.draw(st.sampled_from(parquets)), data))
        column = data.draw(st.sampled_from(["text", "n", "absent"]))
        read(directory, lambda: [piece for piece, _ in ParquetText(file, column).pieces()])


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("store")
    (directory / "a.txt").write_text("the cat and a dog\nthe dog saw the cat\n" * 5)
    files = dict.fromkeys(SPLITS, str(directory / "a.txt"))
    prepare(Data.model_validate({"recipe": "text", **files}), directory / "whole")
    return directory / "whole"


def seal(directory: Path, manifest: dict[str, Any]) -> None:
    """A manifest that fits whatever is there."""
    files = [name for name in STORE_FILES if (directory / name).is_file()]
    manifest["files"] = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_of(directory / name)} for name in files
    }
    (directory / "manifest.json").write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))


def read_all(directory: Path) -> None:
    store = Store.open(directory)
    for split in SPLITS:
        tokens = store.tokens(split)
        tokens.read(0, len(tokens))
    store.tokenize("the cat\nsaw é")
    store.verify()


@FUZZ
@given(st.data())
def test_any_file_of_a_store(whole_store: Path, data: st.DataObject) -> None:
    """Its manifest fits, as one does that a stranger made."""
    with scratch() as directory:
        store = directory / "store"
        shutil.copytree(whole_store, store)
        manifest = json.loads((store / "manifest.json").read_text())
        file = store / data.draw(st.sampled_from(STORE_FILES))
        file.write_bytes(garbled(file.read_bytes(), data))
        if data.draw(st.booleans()):
            manifest["rows_per_batch"] = data.draw(st.sampled_from([1, 2, 1 << 40]))
        seal(store, manifest)
        read(directory, lambda: read_all(store))
        assert list(directory.iterdir()) == [store]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@FUZZ
@given(st.data())
def test_any_manifest_and_vocabulary(whole_store: Path, data: st.DataObject) -> None:
    """Something is missing, or something else; sealed again or not."""
    with scratch() as directory:
        store = directory / "store"
        shutil.copytree(whole_store, store)
        name = data.draw(st.sampled_from(["manifest.json", "vocabulary.json"]))
        content = json.loads((store / name).read_text())
        *path, key = data.draw(st.sampled_from(list(places(content))))
        inner = content
        for step in path:
            inner = inner[step]
        if data.draw(st.booleans()):
            del inner[key]
        else:
            strange = st.sampled_from(["../../outside", "/etc/hostname", -1, 0, 10**30, float("nan"), "\ud800"])
            inner[key] = data.draw(JSON | strange)
        (store / name).write_text(json.dumps(content))
        if name == "vocabulary.json":
            seal(store, json.loads((store / "manifest.json").read_text()))
        elif data.draw(st.booleans()):
            (store / name).write_text(json.dumps({**content, "checksum": _checksum(content)}))
        read(directory, lambda: read_all(store))
        options = {"recipe": "text", "store": str(store)}
        read(directory, lambda: open_or_prepare(Data.model_validate(options)))
        assert list(directory.iterdir()) == [store]
