"""From text to a store, in two streaming passes: count the types of the training split, then encode all splits.

Memory is bounded: one piece of text (1 MiB), its words, one record batch, and the counted types.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tpdist.config import Data
from tpdist.data import recipes
from tpdist.data.disk import unwritable
from tpdist.data.manifest import SPLITS, Manifest, SourceEntry, Split, token_file
from tpdist.data.store import ROWS_PER_BATCH, Store
from tpdist.data.synthetic import MarkovSource, Sampler, check
from tpdist.data.text import FileText, Source
from tpdist.data.tokens import tokenizer
from tpdist.data.vocabulary import UNK, Level, Vocabulary, choose_types
from tpdist.data.writer import id_dtype, refuse_existing, staged, write_manifest, write_tokens, write_vocabulary
from tpdist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Progress:
    """How far a preparation is: `done` of `total` units over all of its phases."""

    phase: Literal["count", "encode", "sample"]
    split: Split
    done: int
    total: int
    unit: Literal["bytes", "tokens"]


Report = Callable[[Progress], None]


def prepare(data: Data, out: Path | str, progress: Report | None = None) -> Store:
    """Make the store of `data` in directory `out`, all of it or nothing, and open it.

    Args:
        data: recipe, its inputs and options; `data.store` is not looked at.
        out: the store's directory; must not exist, or be empty.
        progress: called about once a MiB of text.

    Raises DataError (text that cannot be read, `out` in use, no space) or ConfigError (options that do not fit).
    """
    out = Path(out)
    refuse_existing(out)
    report = progress or (lambda _: None)
    if data.recipe == "synthetic":
        try:
            _prepare_synthetic(data, out, report)
        except MemoryError as error:
            what = f"{data.synthetic.tokens:,} tokens of {data.synthetic.types:,} types"
            raise ConfigError(f"{what} do not fit into memory; take fewer", "data.synthetic.tokens") from error
    else:
        _prepare_text(data, out, report)
    return Store.open(out)


def dry_run(data: Data, out: Path | str) -> list[str]:
    """What `prepare` would read and write, a line each, without doing it. Raises as it does, as far as can be seen."""
    refuse_existing(Path(out))
    if why := unwritable(Path(out).absolute().parent):  # beside it is where it is made
        raise DataError(f"{out}: cannot be written: {why}")
    if data.recipe == "synthetic":
        _check_synthetic(data)
        made = [f"train: {data.synthetic.tokens:,} tokens, drawn from a source of {data.synthetic.types} types"]
    else:
        texts = recipes.corpus(data).texts
        for text in texts.values():
            next(iter(text.pieces()))  # what is no text says so at its beginning
        made = [f"{split}: {text.name}, {text.size:,} bytes" for split, text in texts.items()]
    return [*made, f"level {data.level}; would write {out}"]


def _prepare_text(data: Data, out: Path, report: Report) -> None:
    corpus = recipes.corpus(data)
    texts, level = corpus.texts, data.level
    tokens_of = tokenizer(level)
    meter = _Meter(report, 2 * texts["train"].size + texts["valid"].size + texts["test"].size)
    with staged(out) as directory:
        seen = tokens_of.count(meter.pieces("count", "train", texts["train"]), texts["train"].name, data.max_tokens)
        expected = sum(seen.values())
        _refuse_short(texts["train"], "train", expected)
        types, counts = choose_types(seen, data.max_types, recipes.min_count(data), False)
        if UNK not in types and any(_has_unseen(texts[split], level, seen) for split in ("valid", "test")):
            types, counts = choose_types(seen, data.max_types, recipes.min_count(data), True)
        del seen
        vocabulary = Vocabulary(types, counts, level)
        write_vocabulary(directory, vocabulary)

        tokens: dict[Split, int] = {}
        unigram: dict[Split, float] = {}
        for split in SPLITS:
            text = texts[split]
            score = _Unigram(vocabulary)
            most = data.max_tokens if split == "train" else None
            ids = tokens_of.encode(meter.pieces("encode", split, text), text.name, types, most)
            tokens[split] = write_tokens(directory / token_file(split), id_dtype(len(types)), score.passing(ids))
            _refuse_short(text, split, tokens[split])
            unigram[split] = score.perplexity
        if tokens["train"] != expected:
            raise DataError(f"{texts['train'].name}: it changed while it was read")
        sources = recipes.hashed(data, corpus.sources)
        write_manifest(directory, _manifest(data, len(types), tokens, unigram, sources=sources))


def _refuse_short(text: Source, split: Split, tokens: int) -> None:
    if tokens >= 2:
        return
    where, way_out = text.name, ""
    if isinstance(text, FileText) and text.end is not None:
        where = f"{text.path}, which is cut 90/5/5{' at ends of lines' if text.lines else ''}"
        more = "more lines (break long ones), or --train, --valid and --test" if text.lines else "a longer file"
        way_out = f"; give {more}"
    raise DataError(f"{where}: the {split} split has {tokens} tokens; at least 2 are needed{way_out}")


def _check_synthetic(data: Data) -> None:
    if data.level != "word":
        raise ConfigError("recipe synthetic has words only", "data.level")
    for name, has in (("max_types", "types"), ("min_count", "types"), ("max_tokens", "tokens")):
        if getattr(data, name) is not None:
            raise ConfigError(f"recipe synthetic has exactly data.synthetic.{has} {has}", f"data.{name}")
    check(data.synthetic)


def _prepare_synthetic(data: Data, out: Path, report: Report) -> None:
    _check_synthetic(data)
    options = data.synthetic
    source = MarkovSource.draw(options)
    sampler = Sampler(source, options.seed)
    sizes: dict[Split, int] = {"train": options.tokens, "valid": options.tokens // 10, "test": options.tokens // 10}
    total, before = sum(sizes.values()), 0
    dtype = id_dtype(options.types)
    with staged(out) as directory:
        order = np.arange(options.types)
        vocabulary = Vocabulary([], [], "word")
        ideal: dict[Split, float] = {}
        unigram: dict[Split, float] = {}
        for split, size in sizes.items():

            def drawn(done: int, split: Split = split, before: int = before) -> None:
                report(Progress("sample", split, before + done, total, "tokens"))

            sample, nats = sampler.take(size, dtype, drawn)
            before += size
            ideal[split] = math.exp(nats)
            if split == "train":  # its counts decide the order of the types
                counts = np.bincount(sample, minlength=options.types)
                names = [f"w{i}" for i in range(options.types)]
                ranked = sorted(range(options.types), key=lambda i: (-counts[i], names[i]))
                order[ranked] = np.arange(options.types)
                vocabulary = Vocabulary([names[i] for i in ranked], [int(counts[i]) for i in ranked], "word")
                write_vocabulary(directory, vocabulary)
            score = _Unigram(vocabulary)
            pieces = (order[sample[i : i + ROWS_PER_BATCH]] for i in range(0, size, ROWS_PER_BATCH))
            write_tokens(directory / token_file(split), dtype, score.passing(pieces))
            unigram[split] = score.perplexity
        best = math.exp(source.entropy_rate())
        write_manifest(directory, _manifest(data, options.types, sizes, unigram, best=best, ideal=ideal))


def _manifest(
    data: Data,
    types: int,
    tokens: dict[Split, int],
    unigram: dict[Split, float],
    sources: dict[Split, SourceEntry] | None = None,
    best: float | None = None,
    ideal: dict[Split, float] | None = None,
) -> Manifest:
    """As yet without the files. best, ideal: perplexities, where the source is known."""
    return Manifest(
        recipe=data.recipe,
        options=recipes.store_options(data),
        level=data.level,
        sources=sources or {},
        types=types,
        tokens=tokens,
        dtype=id_dtype(types).name,  # type: ignore[arg-type]
        rows_per_batch=ROWS_PER_BATCH,
        unigram_perplexity={"valid": unigram["valid"], "test": unigram["test"]},
        best_perplexity=best,
        ideal_perplexity=ideal,
        files={},
    )


def _has_unseen(text: Source, level: Level, seen: dict[str, int]) -> bool:
    return tokenizer(level).has_unseen((piece for piece, _ in text.pieces()), text.name, seen)


class _Meter:
    """Adds up the bytes of all phases for the progress report."""

    def __init__(self, report: Report, total: int):
        self._report = report
        self._total = total
        self._before = 0

    def pieces(self, phase: Literal["count", "encode"], split: Split, text: Source) -> Iterator[str]:
        before = self._before
        self._before += text.size  # at once: a cut text is not read to its end
        for piece, done in text.pieces():
            yield piece
            self._report(Progress(phase, split, before + done, self._total, "bytes"))


class _Unigram:
    """Perplexity of the unigram model over the predicted tokens of a split: all but its first."""

    def __init__(self, vocabulary: Vocabulary):
        self._cost = vocabulary.unigram_nats
        self._nats = 0.0
        self._tokens = -1

    def passing(self, batches: Iterator[NDArray[np.integer]]) -> Iterator[NDArray[np.integer]]:
        """The same batches, scored on their way."""
        for ids in batches:
            if len(ids):
                self._nats += float(self._cost[ids if self._tokens >= 0 else ids[1:]].sum())
                self._tokens += len(ids)
            yield ids

    @property
    def perplexity(self) -> float:
        return math.exp(self._nats / self._tokens)
