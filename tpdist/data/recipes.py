"""The recipes: from the configuration to the three texts of a corpus, and to where its store lies.

- `ptb`: `ptb.train.txt`, `ptb.valid.txt`, `ptb.test.txt` of a directory.
- `wikitext`: `wiki.train.tokens` and so on of a directory (or `.raw`, where there is no `.tokens`).
- `text8`: one ASCII file, the first 90 % of its bytes for training, 5 % for validation, 5 % for test (of text8's
  100,000,000: 90M, 5M, 5M). The cuts are exact, so at level word a word at a cut may be halved, as is usual.
  It has no lines: a newline counts as a space.
- `text`: any three files, UTF-8 text or Parquet with a text column; or one of text, cut like text8, at ends of lines.
- `python-docs`, `synthetic`: need no files; see the modules of those names.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tpdist.config import Data
from tpdist.data.manifest import NO_FILES, SPLITS, SourceEntry, Split
from tpdist.data.python_docs import python_docs
from tpdist.data.store import sha256_of
from tpdist.data.text import FileText, ParquetText, Source, end_of_line, file_size, unreadable
from tpdist.errors import ConfigError, DataError

FILE_PATTERNS = {"ptb": ("ptb.{}.txt",), "wikitext": ("wiki.{}.tokens", "wiki.{}.raw")}
STORES = Path("stores")


@dataclass(frozen=True)
class Corpus:
    """Three texts. `sources` says what they were made from."""

    texts: Mapping[Split, Source]
    sources: dict[Split, SourceEntry]


def default_store(data: Data) -> Path:
    """The directory of a configuration's store: `data.store`, else `stores/<recipe>-<level>`.

    The name of a synthetic store carries its parameters, since each set of them is another corpus.
    """
    if data.store is not None:
        return Path(data.store)
    if data.recipe == "synthetic":
        source = data.synthetic
        return STORES / (
            f"synthetic-types{source.types}-states{source.states}-branching{source.branching}"
            f"-tokens{source.tokens}-seed{source.seed}"
        )
    return STORES / f"{data.recipe}-{data.level}"


def min_count(data: Data) -> int:
    """`data.min_count` with its default."""
    return data.min_count or (2 if data.recipe == "python-docs" else 1)


def store_options(data: Data) -> dict[str, str | int | None]:
    """The options that decide what is in the store, by their names in the configuration, for its manifest."""
    options: dict[str, str | int | None] = {"level": data.level}
    if data.recipe == "synthetic":
        return options | {f"synthetic.{name}": value for name, value in data.synthetic.model_dump().items()}
    options |= {"max_types": data.max_types, "min_count": min_count(data), "max_tokens": data.max_tokens}
    if data.recipe == "text" and reads_parquet(data):
        options["column"] = data.column
    if data.recipe == "text" and not missing_source(data):  # three times the same file is another corpus than its parts
        options["source"] = None if data.source is None else "FILE"
    return options


def prepare_command(data: Data) -> str:
    """The command that makes the store of a configuration."""
    given = {
        **dict.fromkeys(FILE_PATTERNS, "--source DIR"),
        "text8": "--source FILE",
        "text": "--train FILE --valid FILE --test FILE" if _of_three_files(data) else "--source FILE",
    }
    words = ["tpdist data prepare", data.recipe, given.get(data.recipe, "")]
    words += [
        f"--{name.replace('_', '-')} {value}"
        for name, value, default in (
            ("level", data.level, "word"),
            ("max_types", data.max_types, None),
            ("min_count", data.min_count, None),
            ("max_tokens", data.max_tokens, None),
            ("column", shlex.quote(data.column) if data.recipe == "text" else "text", "text"),
        )
        if value != default
    ]
    return " ".join(filter(None, [*words, f"--out {shlex.quote(str(default_store(data)))}"]))


def _of_three_files(data: Data) -> bool:
    """Whether a `text` is to be made from three files, not from one that is cut: only of three may some be Parquet."""
    return bool(data.train or data.valid or data.test) or data.column != "text"


def missing_source(data: Data) -> str | None:
    """What a configuration has to give before its store can be prepared; None if nothing."""
    if data.recipe in NO_FILES:
        return None
    if data.recipe == "text" and data.source is None:
        names = [f"data.{split}" for split in SPLITS if getattr(data, split) is None]
        return ", ".join(names) or None if _of_three_files(data) else "data.source"
    return "data.source" if data.source is None else None


def corpus(data: Data) -> Corpus:
    """The texts of a recipe that reads text. Raises DataError or ConfigError for what cannot be read."""
    if missing := missing_source(data):
        raise ConfigError(f"recipe {data.recipe} needs it: {prepare_command(data)}", missing)
    if data.recipe == "python-docs":
        texts = python_docs(data.level)
        made_from: dict[Split, SourceEntry] = {
            split: SourceEntry(name=text.name, bytes=text.size) for split, text in texts.items()
        }
        return Corpus(texts, made_from)
    files = source_files(data)
    sources: dict[Split, SourceEntry] = {
        split: SourceEntry(name=path.name, bytes=file_size(path)) for split, path in files.items()
    }
    if data.recipe == "text8":
        return Corpus(_text8(files["train"], sources["train"].bytes), sources)
    if data.recipe == "text" and data.source is not None:
        return Corpus(_one_file(files["train"], sources["train"].bytes), sources)
    return Corpus(
        {
            split: ParquetText(path, data.column) if is_parquet(path) else FileText(path)
            for split, path in files.items()
        },
        sources,
    )


def hashed(data: Data, sources: dict[Split, SourceEntry]) -> dict[Split, SourceEntry]:
    """The sources with the SHA-256 of their files, where they are files."""
    if data.recipe in NO_FILES:
        return sources
    files = source_files(data)
    digests = {path: sha256_of(path) for path in set(files.values())}
    return {split: sources[split].model_copy(update={"sha256": digests[path]}) for split, path in files.items()}


def source_files(data: Data) -> dict[Split, Path]:
    """The file of every split, of a recipe that reads files and has been given them.

    Raises DataError if the directory of ptb or wikitext does not hold them.
    """
    if data.recipe == "text" and data.source is None:
        return {split: Path(getattr(data, split)) for split in SPLITS}
    source = Path(data.source or "")
    try:
        os.stat(source)
    except FileNotFoundError:
        pass  # said below, with what is wanted
    except OSError as error:
        raise unreadable(source, error) from None
    if data.recipe == "text":
        return dict.fromkeys(SPLITS, source)
    if data.recipe == "text8":
        path = source / "text8" if (source / "text8").is_file() else source
        return dict.fromkeys(SPLITS, path)
    if not source.exists():
        raise DataError(f"{source}: no such directory; recipe {data.recipe} takes the directory of its text files")
    if not source.is_dir():
        raise DataError(f"{source}: a file; recipe {data.recipe} takes the directory of its text files")
    patterns = FILE_PATTERNS[data.recipe]
    for pattern in patterns:
        files: dict[Split, Path] = {split: source / pattern.format(split) for split in SPLITS}
        if all(path.exists() for path in files.values()):
            return files
    wanted = " or ".join(", ".join(pattern.format(split) for split in SPLITS) for pattern in patterns)
    raise DataError(f"{source}: recipe {data.recipe} looks for {wanted} in this directory; not all are there")


def reads_parquet(data: Data) -> bool:
    """Whether any of a corpus's three files is Parquet."""
    return any(map(is_parquet, filter(None, (data.train, data.valid, data.test))))


def is_parquet(path: Path | str) -> bool:
    """Whether a file is read as Parquet, by its name."""
    return Path(path).suffix.lower() == ".parquet"


def _cuts(size: int) -> tuple[int, int, int, int]:
    return 0, size * 90 // 100, size * 95 // 100, size


def _one_file(path: Path, size: int) -> dict[Split, FileText]:
    """Cut where a line ends, from 90 % and from 95 % of its bytes on."""
    if is_parquet(path):
        raise ConfigError(f"{path}: one file is cut as text; of Parquet give data.train, .valid, .test", "data.source")
    _, valid, test, _ = _cuts(size)
    cuts = (0, end_of_line(path, valid), end_of_line(path, test), size)
    return {split: FileText(path, cuts[i], cuts[i + 1]) for i, split in enumerate(SPLITS)}


def _text8(path: Path, size: int) -> dict[Split, FileText]:
    cuts = _cuts(size)
    return {split: FileText(path, cuts[i], cuts[i + 1], ascii=True, lines=False) for i, split in enumerate(SPLITS)}
