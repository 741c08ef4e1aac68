"""Fixtures of the data room's tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tpdist.config import Data
from tpdist.data import Store, prepare

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def benchmark_texts() -> Path:
    """The directory that holds `ptb/` and `wikitext2/`: TPDIST_TEST_DATA, or `shared/data` beside the repository."""
    directory = Path(os.environ.get("TPDIST_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (directory / "ptb").is_dir():
        pytest.skip(f"no PTB and WikiText-2 in {directory}; set TPDIST_TEST_DATA to the directory that has them")
    return directory


WriteTexts = Callable[..., Data]


@pytest.fixture
def texts(tmp_path: Path) -> WriteTexts:
    """Write three text files (str, or bytes for files that are no text) and give the configuration that reads them."""

    def write(
        train: str | bytes, valid: str | bytes = "the cat\n", test: str | bytes = "a dog\n", **options: object
    ) -> Data:
        paths = {}
        for split, text in {"train": train, "valid": valid, "test": test}.items():
            path = tmp_path / f"{split}.txt"
            path.write_bytes(text.encode() if isinstance(text, str) else text)
            paths[split] = str(path)
        return Data(**{"recipe": "text", **paths, **options})  # type: ignore[arg-type]

    return write


@pytest.fixture
def small_store(texts: WriteTexts, tmp_path: Path) -> Store:
    """A store of a few hundred tokens."""
    return prepare(texts("the cat and a dog\nthe dog saw the cat\n" * 40), tmp_path / "store")
