"""Token types, their training counts, and the unigram model that every language model has to beat."""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tpdist.errors import DataError

EOS = "<eos>"
"""One at the end of every line."""
UNK = "<unk>"
"""Stands for every token outside the vocabulary."""

Level = Literal["word", "char"]


class Vocabulary:
    """`types[i]` is the token type of id `i`, `counts[i]` how often it occurs in the training split.

    Types are ordered by count, descending, then alphabetically; `<unk>` is among them only where some split
    needs it.
    """

    def __init__(self, types: list[str], counts: list[int], level: Level):
        self.types = types
        self.counts = counts
        self.level: Level = level

    def __len__(self) -> int:
        return len(self.types)

    @cached_property
    def index(self) -> dict[str, int]:
        """Token type -> id."""
        return {token: i for i, token in enumerate(self.types)}

    def tokenize(self, text: str) -> list[str]:
        """Cut text into tokens of this level; a newline becomes `<eos>`. Adds no `<eos>` at the end."""
        text = text.replace("\r\n", "\n")
        if self.level == "char":
            return [EOS if character == "\n" else character for character in text]
        return text.replace("\n", f" {EOS} ").split()

    def encode(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """Ids of tokens, int64 [n]; unknown ones become `<unk>`. Raises DataError where there is no `<unk>`."""
        index, unk = self.index, self.index.get(UNK)
        ids = []
        for token in tokens:
            i = index.get(token, unk)
            if i is None:
                raise DataError(f"{token!r} is not in the vocabulary of {len(self)} types, which has no {UNK}")
            ids.append(i)
        return np.array(ids, dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: words joined by spaces, characters by nothing; `<eos>` ends a line."""
        parts: list[str] = []
        for i in ids:
            token = "\n" if self.types[i] == EOS else self.types[i]
            if self.level == "word" and parts and "\n" not in (token, parts[-1]):
                parts.append(" ")
            parts.append(token)
        return "".join(parts)

    @cached_property
    def unigram_nats(self) -> NDArray[np.float64]:
        """-log p of every type, [types], from training counts; a type never seen there counts as seen once."""
        counts = np.maximum(np.array(self.counts, dtype=np.float64), 1.0)
        return np.log(counts.sum()) - np.log(counts)


def choose_types(
    counts: Mapping[str, int], max_types: int | None, min_count: int, unseen_elsewhere: bool
) -> tuple[list[str], list[int]]:
    """Types to keep, and their counts, in the vocabulary's order.

    Args:
        counts: occurrences of each type in the training split.
        max_types: the most types to keep, `<unk>` and `<eos>` among them.
        min_count: drop types rarer than this. `<eos>` and `<unk>` are always kept.
        unseen_elsewhere: validation or test hold a type that training does not, so `<unk>` is needed.

    Dropped occurrences are counted as `<unk>`.
    """
    special = [token for token in (EOS, UNK) if token in counts]
    kept = [token for token, count in counts.items() if count >= min_count and token not in special]
    needs_unk = unseen_elsewhere or UNK in counts or len(kept) + len(special) < len(counts)
    limit = math.inf if max_types is None else max_types - (EOS in counts) - needs_unk
    if len(kept) > limit:
        if not needs_unk:
            needs_unk, limit = True, limit - 1
        kept.sort()
        kept.sort(key=counts.__getitem__, reverse=True)
        del kept[max(int(limit), 0) :]
    final = {token: counts[token] for token in kept}
    if EOS in counts:
        final[EOS] = counts[EOS]
    if needs_unk:
        final[UNK] = sum(counts.values()) - sum(final.values())
    types = sorted(final)
    types.sort(key=final.__getitem__, reverse=True)  # stable; a pair as the key would take 100 bytes a type
    return types, [final[token] for token in types]
