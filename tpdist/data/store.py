"""A prepared corpus on disk: token ids in memory-mapped Arrow IPC files, vocabulary, manifest."""

import hashlib
import math
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpdist.data.disk import parse_json
from tpdist.data.manifest import (
    MANIFEST_FILE,
    NO_FILES,
    SPLITS,
    STORE_FILES,
    VOCABULARY_FILE,
    Manifest,
    Split,
    read_manifest,
    token_file,
)
from tpdist.data.python_docs import normalise
from tpdist.data.vocabulary import EOS, Vocabulary
from tpdist.errors import DataError, first_line

ROWS_PER_BATCH = 1 << 20
"""Rows of a record batch. Fixed, so that a range of tokens is found by division."""
TOKEN_COLUMN = "token"


class Tokens(Protocol):
    """The token ids of one split."""

    def __len__(self) -> int: ...

    def read(self, begin: int, end: int) -> NDArray[np.integer]:
        """Ids [end - begin] of tokens begin … end-1, with 0 <= begin <= end <= len."""
        ...


class ArrayTokens:
    """Token ids that are in memory already."""

    def __init__(self, ids: NDArray[np.integer]):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, begin: int, end: int) -> NDArray[np.integer]:
        """A view."""
        _check_range(begin, end, len(self))
        return self.ids[begin:end]


class ArrowTokens:
    """Token ids in a memory-mapped Arrow IPC file; only the pages that are read are loaded."""

    def __init__(self, path: Path, tokens: int, rows: int, dtype: str):
        """Raises DataError unless the file holds `tokens` ids of `dtype` in record batches of `rows` rows."""
        self.path = path
        self._tokens = tokens
        self._rows = rows
        self._batches: dict[int, NDArray[np.integer]] = {}
        self._type = pa.from_numpy_dtype(np.dtype(dtype))
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
            columns = _columns(self._reader.schema)
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a damaged name is not UTF-8
            raise _corrupt(path, f"not a readable Arrow file ({first_line(error)})") from None
        if columns != (expected := f"{TOKEN_COLUMN}: {self._type}"):
            raise _corrupt(path, f"columns {columns}, expected {expected}")
        batches = math.ceil(tokens / rows)
        if self._reader.num_record_batches != batches:
            raise _corrupt(path, f"{self._reader.num_record_batches} record batches, expected {batches}")
        for i in {0, batches - 1}:
            self._batch(i)

    def __len__(self) -> int:
        return self._tokens

    def read(self, begin: int, end: int) -> NDArray[np.integer]:
        """Ids of a range: a read-only view of the file inside a record batch, a copy across batches."""
        _check_range(begin, end, len(self))
        first, last = begin // self._rows, max(begin, end - 1) // self._rows
        if begin == end:
            return np.empty(0, dtype=str(self._type))  # `to_pandas_dtype` of older pyarrows needs pandas
        parts = [self._batch(i)[max(begin - i * self._rows, 0) : end - i * self._rows] for i in range(first, last + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _batch(self, i: int) -> NDArray[np.integer]:
        """View of record batch i, [rows]."""
        if (view := self._batches.get(i)) is not None:
            return view
        rows = min(self._rows, self._tokens - i * self._rows)
        try:
            column = self._reader.get_batch(i).column(0)
            column.validate()
            view = column.to_numpy(zero_copy_only=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _corrupt(self.path, f"record batch {i} is not readable ({first_line(error)})") from None
        if len(view) != rows:
            raise _corrupt(self.path, f"record batch {i} has {len(view)} rows, expected {rows}")
        self._batches[i] = view
        return view


class Store:
    """A prepared corpus. `Store.open` is the way in."""

    def __init__(self, directory: Path, manifest: Manifest, vocabulary: Vocabulary, tokens: dict[Split, ArrowTokens]):
        self.directory = directory
        self.manifest = manifest
        self.vocabulary = vocabulary
        self._tokens = tokens

    @classmethod
    def open(cls, directory: Path | str) -> "Store":
        """Open a store and check it cheaply: manifest, sizes, Arrow footers, row counts; no token is read.

        Raises DataError, in one line that names the file, if it is not whole or of another version.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if set(manifest.files) != set(STORE_FILES) or set(manifest.tokens) != set(SPLITS):
            raise DataError(f"{directory}: the manifest does not list the files {', '.join(STORE_FILES)}")
        if min(manifest.rows_per_batch, manifest.types, *manifest.tokens.values()) < 1:
            raise DataError(f"{directory}: the manifest counts fewer than one row, type or token")
        if not {"valid", "test"} <= manifest.unigram_perplexity.keys():
            raise _corrupt(directory / MANIFEST_FILE, "no unigram_perplexity of valid and test")
        if manifest.recipe not in NO_FILES and not set(SPLITS) <= manifest.sources.keys():
            raise _corrupt(directory / MANIFEST_FILE, f"no sources of {', '.join(SPLITS)}")
        for name, entry in manifest.files.items():
            path = directory / name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _corrupt(path, f"missing ({error.strerror})") from None
            if size != entry.bytes:
                raise _corrupt(path, f"{size:,} bytes, expected {entry.bytes:,}")
        tokens: dict[Split, ArrowTokens] = {
            split: ArrowTokens(directory / token_file(split), count, manifest.rows_per_batch, manifest.dtype)
            for split, count in manifest.tokens.items()
        }
        return cls(directory, manifest, _read_vocabulary(directory / VOCABULARY_FILE, manifest), tokens)

    def tokens(self, split: Split) -> ArrowTokens:
        """Token ids of a split: train, valid or test."""
        return self._tokens[split]

    def verify(self) -> None:
        """Read everything: SHA-256 of every file, range of every token id. Raises DataError naming the file."""
        for name, entry in self.manifest.files.items():
            path = self.directory / name
            try:
                digest = sha256_of(path)
            except OSError as error:
                raise _corrupt(path, f"cannot be read ({error.strerror})") from None
            if digest != entry.sha256:
                raise _corrupt(path, f"SHA-256 {digest[:12]}…, expected {entry.sha256[:12]}…")
        for split, tokens in self._tokens.items():
            for begin in range(0, len(tokens), self.manifest.rows_per_batch):
                ids = tokens.read(begin, min(begin + self.manifest.rows_per_batch, len(tokens)))
                if ids.min() < 0 or ids.max() >= self.manifest.types:
                    path = self.directory / token_file(split)
                    raise _corrupt(path, f"token ids outside 0 … {self.manifest.types - 1}")

    def tokenize(self, text: str) -> list[str]:
        """Cut text (a prompt) into tokens as the store's recipe cut the corpus; no `<eos>` at the end."""
        if self.manifest.recipe == "python-docs":
            text = "\n".join(normalise(line, self.vocabulary.level) for line in text.split("\n"))
        tokens = self.vocabulary.tokenize(text)
        if EOS not in self.vocabulary.index:
            newline = [" "] if self.vocabulary.level == "char" else []
            tokens = [new for token in tokens for new in (newline if token == EOS else [token])]
        return tokens


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_vocabulary(path: Path, manifest: Manifest) -> Vocabulary:
    try:
        content = parse_json(path.read_bytes())
        types, counts = content["types"], content["counts"]
        whole = all(isinstance(token, str) for token in types) and all(type(count) is int for count in counts)
    except (OSError, ValueError, TypeError, KeyError):
        raise _corrupt(path, "not the JSON of a vocabulary") from None
    if not whole or not len(types) == len(counts) == len(set(types)) == manifest.types:
        raise _corrupt(path, f"not a list of {manifest.types:,} different types with their counts")
    return Vocabulary(types, counts, manifest.level)


def _check_range(begin: int, end: int, length: int) -> None:
    if not 0 <= begin <= end <= length:
        raise IndexError(f"tokens {begin} … {end} of {length}")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"


def _corrupt(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}; the store is damaged: delete {path.parent} and prepare it again")
