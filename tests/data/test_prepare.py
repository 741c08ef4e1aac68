"""Preparation: counts, vocabulary, unigram perplexity; all of it or nothing."""

import errno
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import disk_calls

from tpdist.config import Data
from tpdist.data import Progress, Store, prepare, writer
from tpdist.data.manifest import STORE_FILES
from tpdist.errors import DataError

TRAIN = "the cat saw a dog\n\nthe dog saw the cat\n" * 50


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"train.txt", "valid.txt", "test.txt"}


def test_words(texts, tmp_path: Path):
    store = prepare(texts(TRAIN, "the zebra saw\nme", "a dog"), tmp_path / "store")
    vocabulary = store.vocabulary
    assert dict(zip(vocabulary.types, vocabulary.counts, strict=True)) == Counter(
        TRAIN.replace("\n", " <eos> ").split()
    ) | {"<unk>": 0}
    assert vocabulary.types == ["<eos>", "the", "cat", "dog", "saw", "a", "<unk>"]
    assert vocabulary.decode(store.tokens("valid").read(0, 6)) == "the <unk> saw\n<unk>\n"
    assert store.manifest.tokens["test"] == 2  # no newline in it, so no lines, so no <eos>
    # unigram: every predicted token of "the <unk> saw <eos> <unk> <eos>" but the first; <unk> counted once
    total = 150 + 150 + 100 + 100 + 100 + 50 + 1
    nats = -math.log(1 / total) * 2 - math.log(100 / total) - math.log(150 / total) * 2
    assert store.manifest.unigram_perplexity["valid"] == pytest.approx(math.exp(nats / 5), rel=1e-12)


def test_characters(texts, tmp_path: Path):
    store = prepare(texts("ab\r\nba\r\n", "a\n", "é\n", level="char"), tmp_path / "store")
    assert store.vocabulary.types == ["<eos>", "a", "b", "<unk>"]
    assert store.vocabulary.decode(store.tokens("train").read(0, 6)) == "ab\nba\n"
    assert store.vocabulary.decode(store.tokens("test").read(0, 2)) == "<unk>\n"
    assert store.tokenize("a\r\nb") == ["a", "<eos>", "b"]


def test_max_types_counts_unk_and_eos(texts, tmp_path: Path):
    for max_types in (2, 3, 4, 5, 6):  # 6 types in training, none unseen elsewhere
        store = prepare(texts(TRAIN, max_types=max_types), tmp_path / f"store{max_types}")
        assert len(store.vocabulary) == max_types
        assert ("<unk>" in store.vocabulary.types) == (max_types < 6)
    store = prepare(texts(TRAIN, "zebra a\n", max_types=6), tmp_path / "unseen")
    assert len(store.vocabulary) == 6
    assert "a" not in store.vocabulary.types  # gave its place to <unk>


@pytest.mark.parametrize("level", ["word", "char"])
def test_max_tokens_cuts_the_training_split_alone(texts, tmp_path: Path, level: str):
    seen: list[Progress] = []
    long = TRAIN * 3000  # several pieces of text
    cut = prepare(texts(long, TRAIN, TRAIN, level=level, max_tokens=3), tmp_path / "cut", seen.append)
    whole = prepare(texts(TRAIN, TRAIN, TRAIN, level=level), tmp_path / "whole")
    words = cut.vocabulary.decode(cut.tokens("train").read(0, 3))
    assert words == whole.vocabulary.decode(whole.tokens("train").read(0, 3))
    assert cut.manifest.tokens == {**whole.manifest.tokens, "train": 3}
    assert sum(cut.vocabulary.counts) == 3  # types are chosen among the tokens that are kept
    assert "<unk>" in cut.vocabulary.types  # the other splits know more than these
    assert seen[-1].done == seen[-1].total


def test_max_tokens_beyond_the_text_changes_nothing(texts, tmp_path: Path):
    cut, whole = (prepare(texts(TRAIN, max_tokens=n), tmp_path / str(n)) for n in (10**6, None))
    assert cut.manifest.files == whole.manifest.files


def test_the_same_text_gives_the_same_bytes(texts, tmp_path: Path):
    first, second = (prepare(texts(TRAIN), tmp_path / name).manifest for name in ("one", "two"))
    assert first == second


def test_parquet_rows_are_lines(texts, tmp_path: Path):
    lines = ["the cat saw a dog", "", "the dog saw the cat\n", "é中\r\nx\ry\r\n", None]
    rows = pa.table({"text": pa.array(lines), "n": range(5)})
    for split in ("train", "valid", "test"):
        pq.write_table(rows, tmp_path / f"{split}.parquet")
    paths = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "valid", "test")}
    made = prepare(Data(recipe="text", **paths), tmp_path / "parquet")  # type: ignore[arg-type]
    same = "the cat saw a dog\n\nthe dog saw the cat\né中\nx\ny\n"
    plain = prepare(texts(same, same, same), tmp_path / "plain")
    assert made.manifest.files == plain.manifest.files
    assert made.manifest.options["column"] == "text"


def test_progress_reaches_its_total(texts, tmp_path: Path):
    seen: list[Progress] = []
    prepare(texts(TRAIN), tmp_path / "store", seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total
    assert {(p.phase, p.split) for p in seen} == {
        ("count", "train"),
        ("encode", "train"),
        ("encode", "valid"),
        ("encode", "test"),
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("phase", ["count", "encode"])
def test_an_interruption_leaves_nothing(texts, tmp_path: Path, error: type[BaseException], phase: str):
    def interrupt(progress: Progress) -> None:
        if progress.phase == phase:
            raise error

    data = texts(TRAIN)
    with pytest.raises(error):
        prepare(data, tmp_path / "deep" / "store", interrupt)
    assert left_in(tmp_path) == set()
    assert prepare(data, tmp_path / "deep" / "store").manifest.tokens["train"] == 650


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["vocabulary.json", "train.arrow", "test.arrow", "manifest.json"])
def test_no_space_left_leaves_nothing(texts, tmp_path: Path, monkeypatch, name: str, code: int):
    class Full:
        """A file on a full disk: it opens, and takes nothing."""

        def __init__(self, path: Path, mode: str):
            self._file = open(path, mode)  # noqa: SIM115

        def write(self, data: bytes) -> int:
            raise OSError(code, os.strerror(code))

        def __getattr__(self, attribute: str):
            return getattr(self._file, attribute)

        def __enter__(self):
            return self

        def __exit__(self, *_: object):
            self._file.close()

    def open_(path: Path, mode: str):
        return Full(path, mode) if Path(path).name == name else open(path, mode)

    monkeypatch.setattr(writer, "open", open_, raising=False)
    with pytest.raises(DataError, match=rf"{name}: no space left on the device .*nothing was kept") as caught:
        prepare(texts(TRAIN), tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_no_space_at_the_end_leaves_nothing(texts, tmp_path: Path, monkeypatch, call: str):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, call, full)
    with pytest.raises(DataError, match="no space left on the device"):
        prepare(texts(TRAIN), tmp_path / "store")
    assert left_in(tmp_path) == set()


def test_no_space_at_the_beginning_leaves_nothing(texts, tmp_path: Path, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.tempfile, "mkdtemp", full)
    with pytest.raises(DataError, match="no space left on the device"):
        prepare(texts(TRAIN), tmp_path / "deep" / "store")
    assert left_in(tmp_path) == set()


def test_a_text_that_changes_while_it_is_read_is_refused(texts, tmp_path: Path):
    def grow(progress: Progress) -> None:
        if progress.phase == "encode":
            Path(data.train).write_text(TRAIN + "the cat\n")

    data = texts(TRAIN)
    with pytest.raises(DataError, match=r"^train.txt: it changed while it was read$"):
        prepare(data, tmp_path / "store", grow)
    assert left_in(tmp_path) == set()


def test_all_is_on_the_disk_before_the_store_has_its_name(texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = disk_calls(monkeypatch)
    out = prepare(texts(TRAIN), tmp_path / "store").directory
    *files, directory, renamed, parent = done
    assert {path.name for path in out.iterdir()} == {"manifest.json", *STORE_FILES}
    assert {("synced", path.name, path.stat().st_size) for path in out.iterdir()} <= set(files)
    assert (directory[0], renamed[0], directory[1]) == ("synced", "renamed", renamed[1])
    assert parent == ("synced", tmp_path.name, 0)
    mask = os.umask(0o022)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask  # who may read what the user writes may read it


@pytest.mark.parametrize(("types", "dtype"), [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "int32")])
def test_the_largest_id_fits(types: int, dtype: str):
    assert writer.id_dtype(types) == dtype


def test_what_a_killed_preparation_left_is_swept_by_the_next(texts, tmp_path: Path):
    data, out = texts(TRAIN), tmp_path / "a[b]"
    script = f"""
        import os, signal
        from tpdist.config import Data
        from tpdist.data import prepare
        data = Data.model_validate_json({data.model_dump_json()!r})
        prepare(data, {str(out)!r}, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (half,) = left_in(tmp_path)
    assert half.startswith(".a[b].")
    prepare(data, out)
    assert left_in(tmp_path) == {out.name}


def test_a_running_preparation_is_not_swept(texts, tmp_path: Path):
    data = texts(TRAIN)

    def second(progress: Progress) -> None:
        if not (tmp_path / "store").exists():
            prepare(data, tmp_path / "store")

    with pytest.raises(DataError, match="exists and holds a store"):
        prepare(data, tmp_path / "store", second)
    Store.open(tmp_path / "store").verify()
    assert left_in(tmp_path) == {"store"}


def test_an_empty_directory_may_become_a_store(texts, tmp_path: Path):
    (tmp_path / "store").mkdir()
    prepare(texts(TRAIN), tmp_path / "store").verify()
