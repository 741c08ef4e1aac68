"""The θ-step: fused or not, it is the plain sequence of divide, clip, step."""

import sys
from collections.abc import Iterator

import pytest
import torch

from tpdist.config import Model, Optimizer, Run
from tpdist.models import build_model
from tpdist.tprop import Theta, optimizers
from tpdist.tprop.optimizers import CLASSES

TOKENS = 40


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [None, 0.01, 1e6])
@pytest.mark.parametrize("name", ["adagrad", "adam", "adamw", "sgd", "rmsprop"])
def test_one_factor_is_divide_and_clip(name: str, clip: float | None, dtype: str) -> None:
    models = [build_model(Model(hidden=5), Run(dtype=dtype), 9) for _ in range(2)]
    theta = Theta(models[0], Optimizer(name=name, lr=0.1, clip=clip))
    plain = CLASSES[name](list(models[1].parameters()), lr=0.1)  # type: ignore[call-arg]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            q.grad = p.grad / TOKENS
        theta.step(TOKENS)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(models[1].parameters(), clip)
        plain.step()
    rtol = 1e-4 if dtype == "float32" else 1e-10
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)
        torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("option", ["fused", "foreach"])
def test_the_options_decide_how_a_step_is_taken(option: str) -> None:
    model = build_model(Model(hidden=5), Run(), 9)
    assert Theta(model, Optimizer()).optimizer.param_groups[0]["fused"] is True
    asked = Theta(model, Optimizer(options={option: False})).optimizer
    assert asked.param_groups[0][option] is False
    assert not asked.param_groups[0]["fused"]


@pytest.fixture
def without_a_fused_adagrad(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torch 2.11 is on a GPU: it takes the option, and refuses the first step."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")

    module = sys.modules[torch.optim.Adagrad.__module__]  # torch.optim.adagrad, a name that torch deletes
    monkeypatch.setattr(module, "_device_dtype_check_for_fused", refuse)
    optimizers._has_fused.cache_clear()
    yield
    optimizers._has_fused.cache_clear()


@pytest.mark.usefixtures("without_a_fused_adagrad")
def test_where_torch_has_no_fused_kernel_the_step_is_a_plain_one() -> None:
    model = build_model(Model(hidden=3), Run(), 5)
    theta = Theta(model, Optimizer(name="adagrad", lr=0.1))
    assert not theta.guards
    before = model.bias.detach().clone()
    theta.begin(None, 1)
    model.loss(torch.ones(4, 3), torch.tensor([0, 1, 2, 3])).backward()
    theta.step(4)
    assert not torch.equal(model.bias, before)


@pytest.mark.parametrize(
    ("options", "device"), [({}, "cpu"), ({"fused": True}, "meta"), ({"capturable": True}, "meta")]
)
def test_steps_are_counted_where_they_are_read(options: dict[str, bool], device: str) -> None:
    number = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([number], **options)
    assert optimizers.count(3.0, optimizer, torch.device("meta")).device.type == device


@pytest.mark.parametrize(
    ("name", "dtype", "options", "guards"),
    [
        ("adam", "float32", {}, True),
        ("adam", "float64", {}, False),  # its factor is a float32: the division is ours
        ("rmsprop", "float32", {}, False),
        ("adam", "float32", {"foreach": True}, False),
    ],
)
def test_who_steps_along_no_infinity_on_a_gpu(name: str, dtype: str, options: dict[str, bool], guards: bool) -> None:
    model = build_model(Model(hidden=3), Run(dtype=dtype), 5)  # type: ignore[arg-type]
    spec = Optimizer(name=name, lr=0.1, options=options)  # type: ignore[arg-type]
    assert Theta(model, spec).guards is guards
