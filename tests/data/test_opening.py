"""The store of a configuration: found, made, or refused with what to do."""

import os
from pathlib import Path

import pytest

from tpdist.config import Data, Synthetic
from tpdist.data import Store, dry_run, open_or_prepare, opening, prepare
from tpdist.errors import DataError


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_recipes_without_files_are_prepared_once():
    data = Data(recipe="synthetic", synthetic=Synthetic(tokens=1000))
    first = open_or_prepare(data)
    assert str(first.directory).startswith("stores/synthetic-")
    stamp = os.stat(first.directory / "train.arrow").st_mtime_ns
    assert open_or_prepare(data).manifest == first.manifest
    assert os.stat(first.directory / "train.arrow").st_mtime_ns == stamp


def test_files_that_the_configuration_gives_are_prepared(texts):
    assert open_or_prepare(texts("a b\n")).directory == Path("stores/text-word")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"recipe": "ptb"},
            "stores/ptb-word: no such store; run `tpdist data prepare ptb --source DIR --out stores/ptb-word`, "
            "or give data.source in the configuration",
        ),
        (
            {"recipe": "text8", "level": "char", "store": "s"},
            "s: no such store; run `tpdist data prepare text8 --source FILE --level char --out s`, "
            "or give data.source in the configuration",
        ),
        (
            {"recipe": "text", "train": "x.txt"},
            "stores/text-word: no such store; run `tpdist data prepare text --train FILE --valid FILE --test FILE "
            "--out stores/text-word`, or give data.valid, data.test in the configuration",
        ),
        (  # a column is one of Parquet, and a file that is cut is none
            {"recipe": "text", "column": "body"},
            "stores/text-word: no such store; run `tpdist data prepare text --train FILE --valid FILE --test FILE "
            "--column body --out stores/text-word`, or give data.train, data.valid, data.test in the configuration",
        ),
        (
            {"recipe": "ptb", "column": "body"},
            "stores/ptb-word: no such store; run `tpdist data prepare ptb --source DIR --out stores/ptb-word`, "
            "or give data.source in the configuration",
        ),
        ({"recipe": "ptb", "source": "x"}, "x: no such directory; recipe ptb takes the directory of its text files"),
    ],
)
def test_a_missing_store_says_the_command(options: dict, line: str):
    with pytest.raises(DataError) as caught:
        open_or_prepare(Data(**options))
    assert str(caught.value) == line
    assert not Path("stores").exists()


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"max_tokens": 9}, "max_tokens null, the configuration has 9; set data.max_tokens=null to use it, or"),
        ({"max_types": 5}, "max_types null, the configuration has 5; set data.max_types=null to use it, or"),
        ({"min_count": 3}, "min_count 1, the configuration has 3; set data.min_count=1 to use it, or"),
        ({"level": "char"}, "level word, the configuration has char; set data.level=word to use it, or"),
        ({"recipe": "ptb"}, "recipe text, the configuration has ptb; set data.recipe=text to use it, or"),
        ({"recipe": "synthetic"}, "recipe text, the configuration has synthetic; set data.recipe=text to use it, or"),
        (
            {"recipe": "python-docs", "max_types": 5},
            "recipe text, the configuration has python-docs; with data.max_types null, the configuration has 5; "
            "set data.recipe=text data.max_types=null to use it, or",
        ),
    ],
)
def test_a_store_made_otherwise_is_refused(texts, changed: dict, what: str):
    data = texts("a b a b\n", store="mine")
    open_or_prepare(data)
    with pytest.raises(DataError) as caught:
        open_or_prepare(data.model_copy(update=changed))
    assert str(caught.value) == f"mine: made with data.{what} give data.store another directory, or delete this one"


def test_another_synthetic_source_is_refused():
    data = Data(recipe="synthetic", store="mine", synthetic=Synthetic(tokens=1000))
    open_or_prepare(data)
    with pytest.raises(DataError, match=r"made with data\.synthetic\.seed 0, the configuration has 1"):
        open_or_prepare(data.model_copy(update={"synthetic": Synthetic(tokens=1000, seed=1)}))


def test_a_text_that_changed_since_is_refused(texts):
    data = texts("a b a b\n")
    open_or_prepare(data)
    Path(data.train).write_text("a b a b c\n")
    with pytest.raises(DataError, match=r"made from train.txt of 8 bytes, .*train.txt has 10; give data.store another"):
        open_or_prepare(data)
    Path(data.train).unlink()  # the text itself is not needed any more
    open_or_prepare(data)


def test_another_text_of_the_same_size_is_refused_whatever_its_date(texts):
    data = texts("a b a b\n")
    made = open_or_prepare(data).directory / "manifest.json"
    earlier = made.stat().st_mtime - 10
    os.utime(data.train, (earlier, earlier))
    open_or_prepare(data)
    shuffled = Path(data.train).with_name("shuffled.txt")
    shuffled.write_text("b a b a\n")
    os.utime(shuffled, (earlier, earlier))
    with pytest.raises(DataError, match=r"made from train.txt as it was, .*shuffled.txt holds another text; give"):
        open_or_prepare(data.model_copy(update={"train": str(shuffled)}))


def test_a_file_that_is_cut_is_another_corpus_than_three_times_the_file(tmp_path: Path):
    """Whose validation split is its training text."""
    (tmp_path / "a.txt").write_text("a b\n" * 40)
    file = str(tmp_path / "a.txt")
    whole, cut = Data(recipe="text", train=file, valid=file, test=file), Data(recipe="text", source=file)
    for first, second, has, wants in ((whole, cut, "null", "FILE"), (cut, whole, "FILE", "null")):
        first, second = (data.model_copy(update={"store": f"made with {has}"}) for data in (first, second))
        open_or_prepare(first)
        said = rf"made with data\.source {has}, the configuration has {wants}; set data\.source={has} to use it, or"
        with pytest.raises(DataError, match=said):
            open_or_prepare(second)
        assert open_or_prepare(Data(recipe="text", store=first.store)).manifest == open_or_prepare(first).manifest


def test_a_directory_in_the_place_of_the_text_is_no_text(texts):
    data = texts("a b a b\n")
    open_or_prepare(data)
    Path(data.train).unlink()
    Path(data.train).mkdir()
    open_or_prepare(data)


def test_all_options_that_differ_are_named_and_how_to_use_the_store(texts):
    data = texts("a b a b c d\n", max_types=3, max_tokens=5)
    open_or_prepare(data)
    both = r"data.max_types 3, .*; with data.max_tokens 5, .*; set data.max_types=3 data.max_tokens=5 to use it, or"
    with pytest.raises(DataError, match=both):
        open_or_prepare(data.model_copy(update={"max_types": None, "max_tokens": None}))


def test_a_damaged_store_is_found_before_the_run(texts):
    data = texts("a b a b\n")
    path = open_or_prepare(data).directory / "train.arrow"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"train.arrow: SHA-256 .*; the store is damaged: delete stores/text-word"):
        open_or_prepare(data)


def test_a_store_that_another_process_makes_meanwhile_is_opened(texts, monkeypatch):
    data = texts("a b a b\n")

    def beaten(*arguments: object) -> None:
        prepare(data, Path("stores/text-word"))
        raise DataError("exists")

    monkeypatch.setattr(opening, "prepare", beaten)
    assert open_or_prepare(data).manifest.tokens["train"] == 5


def test_a_link_and_a_place_below_a_file_are_refused_before_the_work(texts, tmp_path: Path):
    data = texts("a b a b\n")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("")
    for out, said in (("link", "is a link or a mount point"), ("file/store", "a file, where a directory is expected")):
        for work in (prepare, dry_run):
            with pytest.raises(DataError, match=said):
                work(data, tmp_path / out)


def test_the_working_directory_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What is renamed into its place would be another directory than the one that the shell is in."""
    data = Data(recipe="synthetic", synthetic=Synthetic(tokens=1000), store=".")
    for out in (".", "../here"):
        with pytest.raises(DataError, match=r"is the working directory, which is not replaced; give one inside it$"):
            prepare(data, out)
    assert sorted(os.listdir(tmp_path)) == ["here"]


def test_a_path_that_cannot_be_looked_at_is_one_line():
    """A name too long stands for a directory that is closed to the user."""
    long = "a" * 300
    for look in (
        lambda: Store.open(long),
        lambda: prepare(Data(recipe="ptb", source=long), "out"),
        lambda: open_or_prepare(Data(recipe="text8", source=long, store="out")),
        lambda: open_or_prepare(Data(recipe="ptb", store=long)),
    ):
        with pytest.raises(DataError, match="File name too long"):
            look()


def test_a_dry_preparation_looks_at_the_texts(texts, tmp_path: Path):
    with pytest.raises(DataError, match="a gzip file: unpack it first"):
        dry_run(texts(b"\x1f\x8b packed"), tmp_path / "out")


def test_a_training_text_of_white_space_is_refused_quietly(texts, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    with pytest.raises(DataError, match="the train split has"):
        prepare(texts(" ", " ", " "), tmp_path / "out")
    assert not list(recwarn)
