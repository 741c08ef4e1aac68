"""From the configuration to a model: first parameters, own cells and what is said of those that do not fit."""

import sys
import types
from pathlib import Path

import pytest
import torch
from small_models import B, E, H, N, V, build, rand
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tpdist.config import BUILT_IN_CELLS, Experiment
from tpdist.config import Model as ModelPart
from tpdist.errors import ConfigError
from tpdist.models import GRU, Cell, build_model


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_first_parameters(cell: str) -> None:
    a, same, other = build(3, cell=cell, init=0.02), build(3, cell=cell, init=0.02), build(4, cell=cell, init=0.02)
    for x, y, z in zip(a.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
        assert 0.005 < float(x.detach().abs().max()) <= 0.02
    default = build(cell=cell)
    assert 0.09 < float(default.embedding.weight.detach().abs().max()) <= 0.1
    assert 0.9 * H**-0.5 < float(default.weight.detach().abs().max()) <= H**-0.5
    assert not default.bias.any()
    vectors = [p for name, p in default.layers.named_parameters() if name[2:] in ("alpha", "beta_h", "beta_x", "bias")]
    assert [set(p.tolist()) for p in vectors] == ([{1.0}, {0.5}, {0.5}, {0.0}] if cell == "mrnn" else [])
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


class Orthogonal(Leaky):
    use_trivialization = True  # torch's default: a buffer of what was drawn

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        turn = nn.Linear(hidden, hidden, bias=False)
        self.turn = parametrizations.orthogonal(turn, use_trivialization=self.use_trivialization)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return self.turn(super().step(x, state))


class Reservoir(Leaky):
    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.register_buffer("fixed", torch.randn(hidden, hidden))

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(x + state @ self.fixed)


class Forgetful(Leaky):
    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(x)


class Detached(Leaky):
    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return super().step(x, state).detach()


class Positive(Leaky):
    """Its states are above 0, and it bears no others."""

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return (state + 1e-3).sqrt() + x.square()


class Batched(Leaky):
    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.norm = nn.BatchNorm1d(hidden, track_running_stats=False)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return self.norm(super().step(x, state))


class StepOfAGRU(GRU):
    """Whose forward is still that of all gates."""

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.5 * state + torch.tanh(x.chunk(3, -1)[2])


class Forgets(Leaky):
    """Its forward is right for one step."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs = 0.5 * state + self.map(x)
        return outputs, outputs[-1]


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
    vars(module).update(
        Detached=Detached,
        ForwardAlone=ForwardAlone,
        StepOfAGRU=StepOfAGRU,
        Batched=Batched,
        Forgets=Forgets,
        Positive=Positive,
        Reservoir=Reservoir,
        Orthogonal=Orthogonal,
        OrthogonalKept=type("OrthogonalKept", (Orthogonal,), {"use_trivialization": False}),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


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


@pytest.mark.parametrize("name", ["Positive", "OrthogonalKept"])  # one need not bear states that it never comes to
def test_fit_own_cells(own_module: str, name: str) -> None:
    model = build(cell=f"{own_module}:{name}", allow_cells_from=[own_module])
    assert model.unroll(torch.randint(V, (B, N)), model.zero_state(N))[1].isfinite().all()


def test_an_own_cell_whose_step_gives_another_width(own_module: str) -> None:
    said = rf"WrongWidth': a step of 8 states gives h \(1, 8, 2\) and a state \(8, 2\); they must be \(1, 8, {H}\)"
    with pytest.raises(ConfigError, match=said):
        build(cell=f"{own_module}:WrongWidth", allow_cells_from=[own_module])


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
        ("Reservoir", "its buffer fixed is another every time, and no file keeps it"),
        ("Orthogonal", r"weight.0.base is another .*=False; give torch's orthogonal use_trivialization=False"),
        ("Batched", "a step from a state depends on the states beside it"),
        ("StepOfAGRU", "its forward is not the loop over its step"),
        ("Forgets", "its forward is not the loop over its step"),
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
