"""Cells, head and model against plain torch."""

import itertools
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpdist.config import Experiment
from tpdist.config import Model as ModelPart
from tpdist.errors import ConfigError
from tpdist.models import GRU, IGNORED, LSTM, MRNN, Cell, Elman, LanguageModel, build_model, cross_entropy, token_losses
from tpdist.models import gru as gru_module
from tpdist.models import head as head_module
from tpdist.models.cells import in_pieces

B, N, E, H, V = 5, 3, 4, 6, 9
CELLS = {
    "elman": lambda: Elman(E, H),
    "elman-tanh": lambda: Elman(E, H, "tanh"),
    "elman-identity": lambda: Elman(E, H, "identity"),
    "mrnn": lambda: MRNN(E, H),
    "mrnn-identity": lambda: MRNN(E, H, "identity"),
    "gru": lambda: GRU(E, H),
    "lstm": lambda: LSTM(E, H),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def build(seed: int = 0, dtype: str = "float64", **model: Any) -> LanguageModel:
    config = Experiment.model_validate({"model": {"hidden": H, **model}, "run": {"seed": seed, "dtype": dtype}})
    return build_model(config.model, config.run, V)


@pytest.mark.parametrize("name", ["gru", "lstm"])  # the others have no other
def test_fast_forward_equals_the_step_loop(name: str) -> None:
    cell = CELLS[name]().double()
    for p in cell.parameters():
        nn.init.normal_(p)
    x, state = rand(B, N, E).requires_grad_(), rand(N, cell.state_size).requires_grad_()
    up_h, up_last = rand(B, N, H), rand(N, cell.state_size)
    results = []
    for forward in (cell, lambda x, s: Cell.forward(cell, x, s)):
        h, last = forward(x, state)
        assert torch.equal(h[-1], last[:, :H])
        total = (h * up_h).sum() + (last * up_last).sum()
        results.append((h, last, *torch.autograd.grad(total, [x, state, *cell.parameters()])))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2 * N, 100])
def test_the_gru_works_its_derivatives_out_some_steps_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_module, "ROWS", rows)
    cell, state, x = GRU(E, H).double(), rand(N, H).requires_grad_(), rand(B, N, E)
    for up in ((None, rand(N, H)), (rand(B, N, H), None)):
        slow, fast = (
            torch.autograd.grad([y for y, u in zip(run(x, state), up, strict=True) if u is not None], state,
                                [u for u in up if u is not None])
            for run in (lambda x, s: Cell.forward(cell, x, s), cell)
        )  # fmt: skip
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    monkeypatch.delattr(gru_module, "_slopes")  # which nobody asks for
    with torch.no_grad():
        for got, wanted in zip(cell(x, state), Cell.forward(cell, x, state), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alone", ["inputs", "state", "weights"])
def test_the_gru_where_one_alone_learns(alone: str) -> None:
    cell, x, state = GRU(E, H).double().requires_grad_(alone == "weights"), rand(B, N, E), rand(N, H)
    asked = {"inputs": [x], "state": [state], "weights": list(cell.parameters())}[alone]
    for tensor in asked:
        tensor.requires_grad_()
    slow, fast = (
        torch.autograd.grad(run(x, state)[0].square().sum(), asked)
        for run in (lambda x, s: Cell.forward(cell, x, s), cell)
    )
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


def test_steps_are_the_written_equations() -> None:
    x, h = rand(N, E), rand(N, H)
    elman, mrnn = Elman(E, H).double(), MRNN(E, H).double()
    for p in (*elman.parameters(), *mrnn.parameters()):
        nn.init.normal_(p)
    wanted = torch.sigmoid(x @ elman.input.weight.T + elman.input.bias + h @ elman.recurrent.weight.T)
    torch.testing.assert_close(elman.step(elman.project(x), h), wanted)
    a, u = x @ mrnn.input.weight.T, h @ mrnn.recurrent.weight.T
    wanted = torch.tanh(mrnn.alpha * a * u + mrnn.beta_h * u + mrnn.beta_x * a + mrnn.bias)
    torch.testing.assert_close(mrnn.step(mrnn.project(x), h), wanted)


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_chunked_head_equals_cross_entropy(
    rows: int, multiple: int, needed: tuple[int, ...], dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not types are added up to a multiple, as on a GPU by its softmax; and by either library's products."""
    monkeypatch.setattr(head_module, "ROWS_ON_CPU", rows)
    monkeypatch.setitem(head_module.MULTIPLE, "cpu", multiple)
    if multiple > 1:
        monkeypatch.setattr(head_module, "_softmax_on_cpu", head_module._softmax)
    labels = torch.randint(V, (11,))
    labels[[0, 5, 10]] = IGNORED
    values = [x.to(dtype) for x in (5 * rand(11, H), rand(V, H), rand(V))]
    leaves = [x.requires_grad_(bool(n)) for x, n in zip(values, needed, strict=True)]
    h, weight, bias = leaves
    got = cross_entropy(h, weight, bias, labels)
    wanted = nn.functional.cross_entropy(h @ weight.T + bias, labels, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(got, wanted, rtol=close, atol=close)
    asked = [x for x in leaves if x.requires_grad]
    upstream = -2.5  # a loss that is scaled further on
    for a, b in zip(
        torch.autograd.grad(upstream * got, asked), torch.autograd.grad(upstream * wanted, asked), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=close, atol=close)
    each = token_losses(h, weight, bias, labels)
    assert each[labels == IGNORED].tolist() == [0, 0, 0]
    torch.testing.assert_close(each.sum(), wanted.detach(), rtol=close, atol=close)


def test_head_does_not_overflow_and_bears_ignored_and_no_tokens() -> None:
    h, weight, bias = 1e4 * rand(4, H), rand(V, H), rand(V)
    assert torch.isfinite(cross_entropy(h, weight, bias, torch.zeros(4, dtype=torch.long)))
    h.requires_grad_()
    nothing = cross_entropy(h, weight, bias, torch.full((4,), IGNORED))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert h.grad is not None
    assert not h.grad.any()
    asked = [h, weight.requires_grad_(), bias.requires_grad_()]
    nothing = cross_entropy(h[:0], weight, bias, torch.zeros(0, dtype=torch.long))
    assert float(nothing.detach()) == 0
    for gradient, of in zip(torch.autograd.grad(nothing, asked), asked, strict=True):
        assert torch.equal(gradient, torch.zeros_like(of))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_head_scores_labels_whose_probability_vanishes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either of the ways that a CPU and a GPU take."""
    h, weight, bias = (x.to(dtype) for x in (rand(8, H), 100 * rand(V, H), rand(V)))
    h[2], bias[0] = 0, -100  # of which float32 holds a digit at most
    labels = (h @ weight.T + bias).argmin(1)
    labels[0], labels[1] = IGNORED, (weight @ h[1] + bias).argmax()
    wanted = nn.functional.cross_entropy(h @ weight.T + bias, labels, ignore_index=IGNORED, reduction="sum")
    assert wanted > 6 * 103  # exp(-103) is 0 in float32
    torch.testing.assert_close(cross_entropy(h, weight, bias, labels), wanted)
    monkeypatch.setattr(head_module, "_softmax_on_cpu", head_module._softmax)
    torch.testing.assert_close(cross_entropy(h, weight, bias, labels), wanted)


def test_head_keeps_its_gradients_for_another_backward_pass() -> None:
    leaves = [x.requires_grad_() for x in (rand(4, H), rand(V, H), rand(V))]
    loss = cross_entropy(*leaves, torch.arange(4))
    first = [x.clone() for x in torch.autograd.grad(loss, leaves, retain_graph=True)]
    loss.backward(retain_graph=True)
    for leaf in leaves:
        assert leaf.grad is not None
        leaf.grad.zero_()  # as an optimiser may do to what it was given
    loss.backward()
    for leaf, wanted in zip(leaves, first, strict=True):
        assert torch.equal(leaf.grad, wanted)  # type: ignore[arg-type]


def test_head_refuses_second_derivatives() -> None:
    """The gradient is computed in the forward pass; a derivative of it would be silently wrong."""
    h, weight, bias = rand(4, H).requires_grad_(), rand(V, H), rand(V)
    (gradient,) = torch.autograd.grad(
        cross_entropy(h, weight, bias, torch.zeros(4, dtype=torch.long)) ** 2, h, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("cell", ["elman", "mrnn", "gru", "lstm"])
def test_bfloat16_products_are_close(cell: str) -> None:
    low, high = build(dtype="bfloat16", cell=cell), build(dtype="float32", cell=cell)
    ids, state = torch.randint(V, (B, N)), torch.rand(N, high.state_size) - 0.5
    results = []
    for model in (low, high):
        h, last = model.unroll(ids, state)
        loss = model.loss(h, ids)
        assert (h.dtype, last.dtype, loss.dtype, model.weight.dtype) == (torch.float32,) * 4
        results.append((h, last, loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert torch.equal(results[0][0], results[1][0]) is (cell == "lstm")  # whose steps a CPU takes in float32
    different = False
    for a, b in zip(*results, strict=True):
        different |= not torch.equal(a, b)
        assert float(((a - b).norm() / b.norm()).detach()) < 2e-2
    assert different


def test_bfloat16_gradients_of_many_chunks_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 256 + 1 is 256."""
    monkeypatch.setattr(head_module, "ROWS_ON_CPU", 1)
    h, weight, bias = torch.ones(1500, H), torch.zeros(V, H).requires_grad_(), torch.zeros(V).requires_grad_()
    labels = torch.zeros(1500, dtype=torch.long)
    low, high = (
        torch.autograd.grad(cross_entropy(h, weight, bias, labels, dtype), [weight, bias])
        for dtype in (torch.bfloat16, torch.float32)
    )
    torch.testing.assert_close(low, high, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_head_holds_the_logits_of_one_chunk(dtype: torch.dtype) -> None:
    tokens, types = 10 * head_module.ROWS_ON_CPU + 1, 200
    h, weight, bias = (torch.randn(n, dtype=dtype) for n in ((tokens, H), (types, H), types))
    labels = torch.randint(types, (tokens,))
    chunk = head_module.ROWS_ON_CPU * types * h.element_size()
    for scored, most in ((cross_entropy, 1.5), (token_losses, 2.5)):  # torch's own loss makes a second tensor of them
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            scored(h, weight.requires_grad_(scored is cross_entropy), bias, labels)
        events = profile.kineto_results.events()  # type: ignore[union-attr]
        memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        assert max(itertools.accumulate(size for _, size in memory)) < most * chunk


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_share_one_matrix_and_sum_its_gradients(tied: bool) -> None:
    model = build(tied=tied)
    assert (model.weight is model.embedding.weight) is tied
    assert len(list(model.parameters())) == (7 if not tied else 6)
    if tied:
        ids = torch.randint(V, (B, N))
        h, _ = model.unroll(ids, model.zero_state(N))
        (got,) = torch.autograd.grad(model.loss(h, ids), model.weight)
        untied = build(tied=False)
        with torch.no_grad():
            for name, p in untied.named_parameters():
                p.copy_(model.weight if name == "embedding.weight" else model.get_parameter(name))
        h, _ = untied.unroll(ids, untied.zero_state(N))
        parts = torch.autograd.grad(untied.loss(h, ids), [untied.weight, untied.embedding.weight])
        torch.testing.assert_close(got, parts[0] + parts[1], rtol=1e-12, atol=1e-12)


def test_layers_share_one_flat_state() -> None:
    """Layer by layer, h first; the head sees the top h."""
    model = build(cell="lstm", layers=2, embedding=E)
    ids, state = torch.randint(V, (B, N)), rand(N, 4 * H)
    h, last = model.unroll(ids, state)
    plain = nn.LSTM(E, H, num_layers=2).double()
    names = [f"{kind}_{at}_l{layer}" for layer in (0, 1) for kind in ("weight", "bias") for at in ("ih", "hh")]
    with torch.no_grad():
        for name in names:
            source = model.layers[int(name[-1])].get_parameter(f"rnn.{name[:-1]}0")
            plain.get_parameter(name).copy_(source)
    first = (
        torch.stack([state[:, :H], state[:, 2 * H : 3 * H]]),
        torch.stack([state[:, H : 2 * H], state[:, 3 * H :]]),
    )
    out, (h_last, c_last) = plain(model.embedding(ids), first)
    torch.testing.assert_close(h, out)
    torch.testing.assert_close(last, torch.cat([h_last[0], c_last[0], h_last[1], c_last[1]], 1))
    assert torch.equal(model.visible(last), h[-1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_sequence_in_pieces_is_the_sequence(kind: type[nn.RNNBase]):
    rnn, x, zero = kind(E, H).double(), torch.randn(7, 2, E).double(), torch.zeros(1, 2, H).double()
    state = (zero, zero) if kind is nn.LSTM else zero
    whole, pieces = rnn(x, state), in_pieces(rnn, x, state, 3)
    for one, other in zip(_flat(whole), _flat(pieces), strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(h.square().sum(), list(rnn.parameters())) for h, _ in (whole, pieces)]
    torch.testing.assert_close(*gradients)


def _flat(outcome: tuple[Tensor, Any]) -> list[Tensor]:
    h, last = outcome
    return [h, *last] if isinstance(last, tuple) else [h, last]


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm", "mrnn"])
def test_first_parameters(cell: str) -> None:
    a, same, other = build(3, cell=cell, init=0.02), build(3, cell=cell, init=0.02), build(4, cell=cell, init=0.02)
    for x, y, z in zip(a.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
        assert 0.005 < float(x.detach().abs().max()) <= 0.02
    default = build(cell=cell)
    assert 0.09 < float(default.embedding.weight.detach().abs().max()) <= 0.1
    assert 0.9 * H**-0.5 < float(default.weight.detach().abs().max()) <= H**-0.5
    tied = build(cell=cell, tied=True)
    assert 0.09 < float(tied.weight.detach().abs().max()) <= 0.1
    torch.rand(1)
    before = torch.get_rng_state()
    build(cell=cell)
    assert torch.equal(before, torch.get_rng_state())  # the run's other draws do not depend on the model


class Leaky(Cell):
    """An own cell: h_t = h_{t-1}/2 + W x_t."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.map = nn.Linear(inputs, hidden)

    def project(self, x: Tensor) -> Tensor:
        return self.map(x)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.5 * state + x


class NoStep(Cell):
    pass


class WrongArguments(Leaky):
    def __init__(self, inputs: int):
        super().__init__(inputs, 3)


class WrongWidth(Leaky):
    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return super().step(x, state)[:, :2]


class Dropped(Leaky):
    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return nn.functional.dropout(super().step(x, state), 0.5)


class Counting(Leaky):
    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.register_buffer("factor", torch.tensor(0.5))  # a constant
        self.register_buffer("steps", torch.tensor(0))

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        self.steps += 1
        return super().step(x, state)


class Forgetful(Leaky):
    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(x)


class Detached(Leaky):
    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return super().step(x, state).detach()


class ForwardAlone(Cell):
    """Leaky's outputs without a `step`."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.map = nn.Linear(inputs, hidden)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for mapped in self.map(x):
            state = 0.5 * state + mapped
            outputs.append(state)
        return torch.stack(outputs), state


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("own_cells_for_test")
    vars(module).update(Leaky=Leaky, NoStep=NoStep, WrongArguments=WrongArguments, NotACell=nn.Linear, number=3)
    vars(module).update(WrongWidth=WrongWidth, Dropped=Dropped, Counting=Counting, Forgetful=Forgetful)
    vars(module).update(Detached=Detached, ForwardAlone=ForwardAlone)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_an_own_cell_whose_step_gives_another_width(own_module: str) -> None:
    said = rf"WrongWidth': a step of 8 states gives h \(1, 8, 2\) and a state \(8, 2\); they must be \(1, 8, {H}\)"
    with pytest.raises(ConfigError, match=said):
        build(cell=f"{own_module}:WrongWidth", allow_cells_from=[own_module])


@pytest.mark.parametrize("name", ["Leaky", "ForwardAlone"])
def test_own_cell_by_import_path(own_module: str, name: str) -> None:
    model = build(cell=f"{own_module}:{name}", allow_cells_from=[own_module], layers=2, embedding=E)
    ids, state = torch.randint(V, (B, N)), rand(N, 2 * H)
    h, last = model.unroll(ids, state)
    low, high = state.split(H, 1)
    first, second = model.layers
    assert isinstance(first, Leaky | ForwardAlone)
    assert isinstance(second, Leaky | ForwardAlone)
    for t in range(B):
        low = 0.5 * low + first.map(model.embedding(ids[t]))
        high = 0.5 * high + second.map(low)
        torch.testing.assert_close(h[t], high)
    torch.testing.assert_close(last, torch.cat([low, high], 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Missing", "cannot load"),
        ("NotACell", "not a subclass"),
        ("number", "not a subclass"),
        ("NoStep", "no step"),
        ("WrongArguments", "inputs, hidden"),
        ("Dropped", "two steps from the same state differ"),
        ("Counting", "a step changes its buffer steps, which no checkpoint keeps; a cell must be a function of"),
        ("Forgetful", "no gradient comes from its next state to its state"),
        ("Detached", "no gradient comes from its next state to its state"),
    ],
)
def test_bad_own_cells_name_the_key(own_module: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(cell=f"{own_module}:{name}", allow_cells_from=[own_module])
    assert caught.value.key == "model.cell"


def test_an_own_module_that_is_no_python_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_syntax_here.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot load 'bad_syntax_here:Cell': .*bad_syntax_here.py, line 1"):
        build(cell="bad_syntax_here:Cell", allow_cells_from=["bad_syntax_here"])


def test_an_own_cell_from_nowhere_names_the_key() -> None:
    part = ModelPart(cell="no_such_package_here:Cell", allow_cells_from=("no_such_package_here",))
    with pytest.raises(ConfigError, match="no_such_package_here") as caught:
        build_model(part, Experiment().run, V)
    assert caught.value.key == "model.cell"


def test_an_own_cell_from_a_package_that_is_not_listed_is_refused(own_module: str) -> None:
    with pytest.raises(ValueError, match="allow_cells_from"):
        build(cell=f"{own_module}:Leaky")


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_copy_is_in_one_piece(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU cuDNN would put the weights together anew at every call, and say so."""
    flattened: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self))
    model = build(cell=cell, layers=2)
    flattened.clear()
    copied = model.copied()
    assert flattened == [module for module in copied.modules() if isinstance(module, nn.RNNBase)]
    assert len(flattened) == 2
    for one, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
