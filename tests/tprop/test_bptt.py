"""BPTT is a setting: no H-steps, λ = 0, a carried state. Against the loop that one would write with torch alone."""

import copy

import pytest
import torch
from problems import experiment, make_stream, windows_of
from torch import Tensor, nn

from tpdist.models import LanguageModel, build_model
from tpdist.tprop import Alone, Boundaries, Theta, plan_epoch, visit

TYPES, HIDDEN, B, S, UPDATES = 7, 5, 4, 3, 50
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    "adam": (torch.optim.Adam, {}),
}


class Plain(nn.Module):
    """nn.Embedding, nn.GRU or nn.LSTM, nn.Linear."""

    def __init__(self, cell: str, source: LanguageModel):
        super().__init__()
        self.embedding = nn.Embedding(TYPES, HIDDEN)
        self.rnn = (nn.GRU if cell == "gru" else nn.LSTM)(HIDDEN, HIDDEN, num_layers=len(source.layers))
        self.head = nn.Linear(HIDDEN, TYPES)
        self.double()
        with torch.no_grad():
            for mine, its in zip(self.ordered(), source.parameters(), strict=True):
                mine.copy_(its)

    def ordered(self) -> list[nn.Parameter]:
        """In the order of LanguageModel.parameters()."""
        return [self.head.weight, self.head.bias, self.embedding.weight, *self.rnn.parameters()]

    def forward(self, ids: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        out, state = self.rnn(self.embedding(ids), state)
        return self.head(out), state


def detach(state: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    return state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)  # type: ignore[return-value]


def plain_bptt(plain: Plain, stream: Tensor, optimizer: torch.optim.Optimizer, clip: float | None, blocks: int) -> None:
    """Truncated BPTT with window B; `blocks` windows give one update."""
    layers = plain.rnn.num_layers
    zero = torch.zeros(layers, S, HIDDEN, dtype=torch.float64)
    state = zero if isinstance(plain.rnn, nn.GRU) else (zero, zero)
    for update in range(UPDATES):
        optimizer.zero_grad()
        for block in range(blocks):
            at = (update * blocks + block) * B
            ids, labels = stream[:, at : at + B].t(), stream[:, at + 1 : at + B + 1].t()
            logits, state = plain(ids, detach(state))
            loss = nn.functional.cross_entropy(logits.reshape(-1, TYPES), labels.reshape(-1), reduction="sum")
            (loss / (S * B * blocks)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("name", "layers", "blocks"), [("sgd", 1, 1), ("adagrad", 1, 1), ("adam", 1, 1), ("sgd", 2, 1), ("adam", 1, 3)]
)
def test_same_updates_as_a_plain_torch_loop(name: str, cell: str, layers: int, blocks: int) -> None:
    cls, options = OPTIMIZERS[name]
    clip = 0.3
    config = experiment(
        model={"cell": cell, "hidden": HIDDEN, "layers": layers, "init": 0.5},
        method={"name": "bptt"},
        objective={"block": B},
        batching={"streams": S, "blocks": blocks},
        optimizer={"name": name, "lr": 0.1, "clip": clip, "options": options},
    )
    model = build_model(config.model, config.run, TYPES)
    plain = Plain(cell, model)
    stream = make_stream(S, UPDATES * blocks * B, TYPES)
    plain_bptt(plain, stream, cls(plain.parameters(), lr=0.1, **options), clip, blocks)

    first = copy.deepcopy(model)
    plan = plan_epoch(config, 1, blocks)
    theta = Theta(model, config.optimizer)
    boundaries = Boundaries.for_plan(plan, S, UPDATES * blocks, model)
    carried = model.zero_state(S)
    for index, window in enumerate(windows_of(stream, B, blocks)):
        carried = visit(model, plan, theta, window, index * blocks, boundaries, carried, Alone()).carry

    for (key, got), wanted, start in zip(model.named_parameters(), plain.ordered(), first.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10, msg=key)
        assert float((got - start).detach().abs().max()) > 1e-3, key  # it did train


def test_pm_without_h_steps_and_without_a_penalty_is_bptt_too() -> None:
    """The setting, spelt without the name: λ so small that it is lost in rounding."""
    results = []
    for method, weight in ({"name": "bptt"}, 0.1), ({"name": "pm", "h_steps": 0}, 1e-30):
        config = experiment(
            method=method, objective={"block": B, "weight": weight}, batching={"streams": S, "blocks": 3}
        )
        model = build_model(config.model, config.run, TYPES)
        plan, theta = plan_epoch(config, 1, 3), Theta(model, config.optimizer)
        carried = model.zero_state(S)
        for window in windows_of(make_stream(S, 6 * B, TYPES), B, 3):
            carried = visit(model, plan, theta, window, 0, Boundaries(), carried, Alone()).carry
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
