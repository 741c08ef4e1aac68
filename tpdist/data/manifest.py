"""`manifest.json`: what a store holds, and how to tell that it is whole."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpdist.data.disk import parse_json
from tpdist.errors import DataError, first_line

FORMAT = "tpdist-store"
VERSION = 1
MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocabulary.json"

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
NO_FILES = ("python-docs", "synthetic")
"""Recipes that read no files."""


def token_file(split: str) -> str:
    """Name of the file that holds a split's token ids."""
    return f"{split}.arrow"


STORE_FILES = (VOCABULARY_FILE, *(token_file(split) for split in SPLITS))
"""Every file of a store but the manifest."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """A file of the store."""

    bytes: int
    sha256: str


class SourceEntry(_Strict):
    """A file that a split was made from."""

    name: str
    bytes: int
    sha256: str | None = None


class Manifest(_Strict):
    """What `manifest.json` says. Every value but `checksum` follows from the text and the options alone."""

    format: Literal["tpdist-store"] = FORMAT
    version: Literal[1] = VERSION
    recipe: str
    options: dict[str, str | int | None] = Field(description="what the configuration asked for: level, max_types, …")
    level: Literal["word", "char"]
    sources: dict[Split, SourceEntry] = Field(description="empty where the recipe reads no files")
    types: int
    tokens: dict[Split, int]
    dtype: Literal["uint8", "uint16", "int32"]
    rows_per_batch: int
    unigram_perplexity: dict[Split, float] = Field(description="of valid and test")
    best_perplexity: float | None = Field(description="synthetic: exp of the source's entropy rate")
    ideal_perplexity: dict[Split, float] | None = Field(
        description="synthetic: of each split, by the source itself, from its known state"
    )
    files: dict[str, FileEntry]
    checksum: str = Field("", description="SHA-256 of this manifest with an empty checksum")

    def sealed(self) -> "Manifest":
        """The same with its checksum."""
        return self.model_copy(update={"checksum": _checksum(self.model_dump())})

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a store's directory. Raises DataError unless it is whole and of this version."""
    path = directory / MANIFEST_FILE
    again = "prepare it again (tpdist data prepare)"
    try:
        if not directory.exists():
            raise DataError(f"{directory}: no such store")
        if not directory.is_dir():
            raise DataError(f"{directory}: a file; a store is a directory")
        raw = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{directory}: not a store (no {MANIFEST_FILE}); {again} into another directory") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: not JSON (truncated or altered); delete {directory} and {again}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f"{path}: not the manifest of a store (format is not {FORMAT!r}); give another directory")
    if raw.get("version") != VERSION:
        raise DataError(
            f"{path}: a store of version {raw.get('version')!r}, this program reads version {VERSION}; {again}"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = first_line(".".join(map(str, first["loc"])))
        raise DataError(f"{path}: {where}: {first['msg']}; altered: delete {directory} and {again}") from None
    if manifest.checksum != _checksum(raw):
        raise DataError(f"{path}: does not match its own checksum; altered: delete {directory} and {again}")
    return manifest


def _checksum(manifest: dict[str, Any]) -> str:
    text = json.dumps({**manifest, "checksum": ""}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
