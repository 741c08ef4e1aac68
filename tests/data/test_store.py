"""A store: reading without a copy, and damage of every kind named in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpdist.data import Store
from tpdist.data.manifest import STORE_FILES
from tpdist.data.store import ArrowTokens
from tpdist.data.writer import write_manifest, write_tokens
from tpdist.errors import DataError


def fails(directory: Path) -> str:
    """The line with which opening and verifying fails."""
    with pytest.raises(DataError) as caught:
        Store.open(directory).verify()
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_whole_store_verifies(small_store: Store):
    small_store.verify()
    assert small_store.manifest.tokens == {"train": 480, "valid": 3, "test": 3}
    assert small_store.vocabulary.decode(small_store.tokens("valid").read(0, 3)) == "the cat\n"
    ids = small_store.vocabulary.encode(["the", "<eos>"])
    assert [small_store.vocabulary.types[i] for i in ids] == ["the", "<eos>"]
    with pytest.raises(DataError, match="'zebra' is not in the vocabulary of 7 types, which has no <unk>"):
        small_store.vocabulary.encode(["zebra"])


@pytest.mark.parametrize("name", ["manifest.json", *STORE_FILES])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "longer", "missing", "a directory"])
def test_damage_is_found_and_the_file_is_named(small_store: Store, name: str, damage: str):
    path = small_store.directory / name
    raw = path.read_bytes()
    path.unlink()
    if damage == "a directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": raw[:-10], "emptied": b"", "longer": raw + b"x"}[damage])
    line = fails(small_store.directory)
    assert name in line
    assert "bytes, expected" in line or damage in ("missing", "a directory") or name == "manifest.json"
    assert "prepare it again" in line or (damage == "a directory" and "Is a directory" in line)


@pytest.mark.parametrize("name", ["manifest.json", *STORE_FILES])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_found(small_store: Store, name: str, where: float, bit: int):
    path = small_store.directory / name
    raw = bytearray(path.read_bytes())
    at = int(where * len(raw))
    raw[at] ^= 1 << bit
    try:
        path.write_bytes(raw)
        assert name in fails(small_store.directory)
    finally:
        raw[at] ^= 1 << bit
        path.write_bytes(raw)


def test_every_byte_of_an_arrow_file_counts(small_store: Store):
    """The highest bit of each byte in turn: it also makes names invalid UTF-8 and lengths negative."""
    path = small_store.directory / "test.arrow"
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x80]) + raw[at + 1 :])
        assert "test.arrow" in fails(small_store.directory)


@pytest.mark.parametrize(("dtype", "bad"), [("uint8", 7), ("int32", -1)])
def test_token_ids_outside_the_vocabulary_are_found(tmp_path: Path, small_store: Store, dtype: str, bad: int):
    """In the second record batch."""
    path = small_store.directory / "valid.arrow"
    write_tokens(tmp_path / "bad.arrow", np.dtype(dtype), [np.array([1, 2, bad])], rows=2)
    small_store.manifest = small_store.manifest.model_copy(update={"rows_per_batch": 2})
    small_store._tokens["valid"] = ArrowTokens(tmp_path / "bad.arrow", 3, 2, dtype)
    with pytest.raises(DataError, match=f"{path}: token ids outside 0 … "):
        small_store.verify()


def edit(store: Store, **values: object) -> None:
    path = store.directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_version(small_store: Store):
    edit(small_store, version=2)
    assert "a store of version 2, this program reads version 1; prepare it again" in fails(small_store.directory)


def test_an_edited_manifest(small_store: Store):
    edit(small_store, best_perplexity=1.5)
    assert "does not match its own checksum" in fails(small_store.directory)
    edit(small_store, tokens={"train": "many"})
    assert "manifest.json: tokens.train: Input should be a valid integer" in fails(small_store.directory)
    edit(small_store, format="parquet")
    assert "not the manifest of a store" in fails(small_store.directory)


def test_a_manifest_without_what_its_readers_need(small_store: Store):
    """Its checksum is right: whoever wrote it left an entry out."""
    file, manifest = small_store.directory / "manifest.json", small_store.manifest
    for entry, said in (("unigram_perplexity", "of valid and test"), ("sources", "of train, valid, test")):
        whole = getattr(manifest, entry)
        for part in ({}, {name: value for name, value in whole.items() if name != "valid"}):
            file.write_text(manifest.model_copy(update={entry: part}).sealed().to_json())
            assert f"manifest.json: no {entry} {said}; the store is damaged" in fails(small_store.directory)
    for update in ({"rows_per_batch": 0}, {"types": 0}, {"tokens": manifest.tokens | {"test": 0}}):
        file.write_text(manifest.model_copy(update=update).sealed().to_json())
        assert "counts fewer than one row, type or token" in fails(small_store.directory)


@pytest.mark.parametrize("change", [{"types": list("abcdefa")}, {"counts": [1] * 6}, {"counts": ["1"] * 7}])
def test_a_vocabulary_that_is_none(small_store: Store, change: dict[str, list]):
    """Its sums are right: whoever wrote it went wrong."""
    path = small_store.directory / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_manifest(small_store.directory, small_store.manifest)
    assert "vocabulary.json: not a list of 7 different types with their counts" in fails(small_store.directory)


def test_not_a_store(tmp_path: Path, small_store: Store):
    assert "no such store" in fails(tmp_path / "nowhere")
    assert fails(tmp_path / "two\nlines").endswith("two\\nlines: no such store")
    assert "a file; a store is a directory" in fails(tmp_path / "train.txt")
    (tmp_path / "empty").mkdir()
    assert "not a store (no manifest.json)" in fails(tmp_path / "empty")
    shutil.copytree(small_store.directory, tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert "not a store (no manifest.json)" in fails(tmp_path / "half")


@pytest.mark.parametrize(
    ("tokens", "rows", "dtype", "said"),
    [
        (1036, 100, "uint8", "record batch 10 has 37 rows, expected 36"),
        (1000, 100, "uint8", "11 record batches, expected 10"),
        (1037, 99, "uint8", "record batch 0 has 100 rows, expected 99"),
        (1037, 100, "uint16", "columns token: uint8, expected token: uint16"),
    ],
)
def test_a_file_of_other_tokens_is_refused(tmp_path: Path, tokens: int, rows: int, dtype: str, said: str):
    write_tokens(tmp_path / "t.arrow", np.dtype(np.uint8), [np.zeros(1037, np.uint8)], rows=100)
    with pytest.raises(DataError, match=said):
        ArrowTokens(tmp_path / "t.arrow", tokens, rows, dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_ranges_are_views_inside_a_batch_and_right_across(tmp_path: Path, dtype: str):
    ids = np.random.default_rng(0).integers(200, size=1037).astype(dtype)
    assert write_tokens(tmp_path / "t.arrow", np.dtype(dtype), np.array_split(ids, 7), rows=100) == 1037
    tokens = ArrowTokens(tmp_path / "t.arrow", len(ids), 100, dtype)
    assert len(tokens) == 1037
    for begin, end in [(0, 0), (0, 1037), (100, 200), (99, 101), (0, 100), (1000, 1037), (1037, 1037), (5, 555)]:
        assert (tokens.read(begin, end) == ids[begin:end]).all()
        assert tokens.read(begin, end).dtype == dtype
    first, again = tokens.read(110, 190), tokens.read(150, 200)
    assert np.shares_memory(first, again)
    assert not first.flags.writeable
    for begin, end in [(-1, 3), (0, 1038), (5, 4)]:
        with pytest.raises(IndexError):
            tokens.read(begin, end)
