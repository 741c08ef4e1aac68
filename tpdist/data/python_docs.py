"""Recipe `python-docs`: the text of CPython's `pydoc_data.topics`, which every machine already has.

A small corpus for quickstarts, not for figures: it differs between Python versions. How it is made, and why:

- paragraphs (what stands between blank lines), white space collapsed, lower case: with some 70,000 tokens a
  model cannot learn that `The` and `the` are one word;
- a paragraph that occurs twice (so written) is dropped, before the split: training text must not leak into validation;
- rules of three or more `* = - ~ ^ + |` (underlined headings, frames of tables) are dropped: they are long runs of
  one token, which only flatter a model;
- at level word, punctuation is split off, with operators such as `->`, `==`, `**`, `>>>` and `...` kept whole;
- one paragraph is one line, so it ends with `<eos>`; types seen once become `<unk>` (`min_count` 2);
- of every 24 consecutive paragraphs the first 20 are for training, then 2 for validation and 2 for test. So both
  are spread over all topics, no paragraph is in two splits, and each has about a twelfth of the text.
"""

import platform
import re

from tpdist.data.manifest import Split
from tpdist.data.text import StringText
from tpdist.data.vocabulary import Level
from tpdist.errors import DataError

CYCLE: tuple[tuple[Split, int], ...] = (("train", 20), ("valid", 2), ("test", 2))
"""Consecutive paragraphs that each split gets in turn."""

_RULE = re.compile(r"[*=\-~^+|]{3,}")
_TOKEN = re.compile(r"\.\.\.|>>>|::=|->|[=!<>:*/+-]=|\*\*|//|<<|>>|\w+(?:'\w+)?|[^\w\s]")


def normalise(paragraph: str, level: Level) -> str:
    """One paragraph as one line; at level word its tokens stand between single spaces."""
    text = _RULE.sub(" ", paragraph.lower().replace("’", "'"))
    return " ".join(_TOKEN.findall(text) if level == "word" else text.split())


def paragraphs(text: str, level: Level) -> list[str]:
    """The different paragraphs of a text, normalised, in order of first appearance, without empty ones."""
    lines = (normalise(paragraph, level) for paragraph in re.split(r"\n\s*\n", text))
    return [line for line in dict.fromkeys(lines) if line]


def split_paragraphs(lines: list[str]) -> dict[Split, list[str]]:
    """Deal paragraphs to the splits as `CYCLE` says."""
    turns: list[Split] = [split for split, run in CYCLE for _ in range(run)]
    dealt: dict[Split, list[str]] = {split: [] for split, _ in CYCLE}
    for i, line in enumerate(lines):
        dealt[turns[i % len(turns)]].append(line)
    return dealt


def python_docs(level: Level) -> dict[Split, StringText]:
    """The three texts of the running Python. Raises DataError if it comes without its topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "recipe python-docs: this Python has no pydoc_data.topics; use recipe text with files, or synthetic"
        ) from None
    name = f"pydoc_data.topics of Python {platform.python_version()}"
    dealt = split_paragraphs(paragraphs("\n\n".join(topics.values()), level))
    return {split: StringText(name, "".join(line + "\n" for line in lines)) for split, lines in dealt.items()}
