"""A whole run of truncated BPTT, against the loop that anybody would write in PyTorch."""

import math
from pathlib import Path

import pytest
import torch
from small_runs import Listener, rows, small
from torch import Tensor, nn

from tpdist.data import Store
from tpdist.models import build_model
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal
from tpdist.training.trainer import Trainer

S, B, EPOCHS, LR, CLIP = 2, 4, 2, 0.02, 0.5


def streams_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and labels [100, S] of 200 tokens; the second stream has one pair less, whose label is -100."""
    inputs = torch.stack([ids[:100], torch.cat([ids[100:199], ids[:1]])], 1)
    labels = torch.stack([ids[1:101], torch.cat([ids[101:200], torch.tensor([-100])])], 1)
    return inputs, labels


@pytest.mark.parametrize("blocks", [1, 3])
def test_bptt_is_a_plain_loop(blocks: int, small_corpus: Path, tmp_path: Path):
    """State carried from update to update and 0 where an epoch begins; no gradient past a block, an update a window."""
    config = small(
        small_corpus,
        method={"name": "bptt"},
        objective={"block": B},
        batching={"streams": S, "blocks": blocks},
        optimizer={"name": "adam", "lr": LR, "clip": CLIP},
        run={"dtype": "float64", "epochs": EPOCHS},
    )
    store = Store.open(small_corpus)
    trainer = Trainer(config, store, RunDirectory.create(config, tmp_path / "run"), Listener())
    model = build_model(config.model, config.run, len(store.vocabulary))
    inputs, labels = streams_of(torch.from_numpy(store.tokens("train").read(0, 200).astype("int64")))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    losses = []
    for _ in range(EPOCHS):
        state, summed = torch.zeros(1, S, config.model.hidden).double(), 0.0
        for window in range(0, 100, B * blocks):
            loss, tokens = torch.zeros(()).double(), 0
            for begin in range(window, min(window + B * blocks, 100), B):
                here = slice(begin, begin + B)
                h, state = model.layers[0].rnn(model.embedding(inputs[here]), state.detach())  # type: ignore[operator]
                logits = nn.functional.linear(h, model.weight, model.bias).flatten(0, 1)
                loss = loss + nn.functional.cross_entropy(logits, labels[here].flatten(), reduction="sum")
                tokens += int((labels[here] >= 0).sum())
            optimizer.zero_grad()
            (loss / tokens).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            summed += loss.item()
        losses.append(summed / 199)
    trainer.fit(StopSignal())
    for got, wanted in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    epochs = rows(tmp_path / "run", "epoch")
    assert [row["loss"] for row in epochs] == pytest.approx(losses)
    assert [row["perplexity"] for row in epochs] == pytest.approx([math.exp(loss) for loss in losses])
