"""ĥ of many blocks by the recurrence alone, a part of the blocks at a time.

Shape letters: `window.py`, `tpdist.models.cells`.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.parts import Part, cut
from tpdist.tprop.window import Arrival, Neighbours, nothing

# What takes a part of the blocks, their ĥ [n, d], and the gradient with respect to their starts [n, d] if asked for.
Each = Callable[[Part, Tensor, Tensor | None], None]


def predict(model: LanguageModel, inputs: Tensor, start: Tensor, chunk_blocks: int) -> Tensor:
    """ĥ at the end of every block, the recurrence alone: inputs [B, S, k], start [S, k, d] -> [S, k, d]."""
    return predict_across(model, inputs, start, chunk_blocks, None)[0]


def predict_across(
    model: LanguageModel,
    inputs: Tensor,
    start: Tensor,
    chunk_blocks: int,
    neighbours: Neighbours | None,
    each: Each | None = None,
) -> tuple[Tensor, Arrival]:
    """`predict`; the last block's is sent to the right as soon as it is known, and the left neighbour's arrives.

    each: as in `blocks_pass`; what is returned is then the last block's alone, [S, 1, d].
    """
    predictions = torch.empty_like(start if each is None else start[:, -1:])
    S, k, _ = start.shape
    first, others = cut(S, k, chunk_blocks, edge_to_the_right(neighbours))

    def roll(parts: list[Part]) -> None:
        with torch.no_grad():
            for part in parts:
                prediction = model.unroll(part.tokens(inputs), part.of(start))[1]
                note(part, prediction, predictions, k)
                if each is not None:
                    each(part, prediction, None)

    roll(first)
    from_left = neighbours.to_right(predictions[:, -1]) if neighbours else nothing
    roll(others)
    return predictions, from_left


def at_boundaries(predictions: Tensor, from_left: Tensor | None) -> Tensor:
    """Predictions of blocks [S, k, d] as those of boundaries [S, k+1, d]: boundary 0's comes from the left."""
    edge = torch.zeros_like(predictions[:, 0]) if from_left is None else from_left
    return torch.cat([edge[:, None], predictions], 1)


def note(part: Part, prediction: Tensor, into: Tensor, blocks: int) -> None:
    """A part's ĥ [n, d] in its places of `into` [S, k, d], or the last block's in [S, 1, d]."""
    if into.shape[1] == blocks:
        part.put(into, prediction)
    elif part.blocks.stop == blocks:
        into[part.streams, 0] = part.shaped(prediction)[:, -1]


def edge_to_the_right(neighbours: Neighbours | None) -> Literal["last"] | None:
    """The block whose prediction another worker waits for."""
    return None if neighbours is None or neighbours.is_last else "last"
