"""θ's gradient summed over workers: sent while the backward pass runs, and the sum that a plain addition gives."""

import weakref
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tpdist.config import Model, Run
from tpdist.models import LanguageModel, build_model
from tpdist.parallel import Traffic, Workers
from tpdist.parallel import reduce as reduce_module
from tpdist.parallel.reduce import BucketedSum, Sum, buckets
from tpdist.testing import run_ranks

TYPES, RANKS, STEPS, PASSES = 40, 3, 4, 2
FEW, MANY = 36, 360  # tokens: fewer than types, of the embedding rows are sent; or more, all of it
LSTM = {"cell": "lstm", "layers": 2}
MODELS: dict[str, dict[str, Any]] = {"gru": {}, "lstm, 2 layers": LSTM, "small buckets": LSTM, "tied": {"tied": True}}
CASES = [(name, tokens) for name in MODELS for tokens in (FEW, MANY)]


def language_model(parts: dict[str, Any]) -> LanguageModel:
    return build_model(Model(hidden=6, **parts), Run(dtype="float64"), TYPES)


def inputs_of(rank: int, tokens: int) -> Tensor:
    """[STEPS, tokens / STEPS / RANKS] ids."""
    n = tokens // STEPS // RANKS
    return torch.randint(TYPES, (STEPS, n), generator=torch.Generator().manual_seed(rank))


def loss_of(model: LanguageModel, ids: Tensor) -> Tensor:
    return model.loss(model.unroll(ids, model.zero_state(ids.shape[1]))[0], ids)


@dataclass
class Told:
    """The summed gradients; the bytes sent; what happened during the backward passes, in order."""

    gradients: list[Tensor]
    sent: int
    log: list[str]


def every_case_on_a_rank() -> dict[tuple[str, int], Told]:
    return {case: one_case(*case) for case in CASES} | {("rounded", MANY): one_case("gru", MANY, "bfloat16")}


def one_case(name: str, tokens: int, dtype: Literal["bfloat16"] | None = None) -> Told:
    rank = dist.get_rank()
    workers = Workers.join((RANKS, 1), torch.device("cpu"), dtype)
    model = language_model(MODELS[name])
    log: list[str] = []
    order = model.in_backward_order()
    order[-1].register_post_accumulate_grad_hook(lambda _: log.append("last parameter"))
    with pytest.MonkeyPatch.context() as patch:
        if name == "small buckets":  # one a parameter: within a layer they do not end in order
            patch.setattr(reduce_module, "BUCKET_BYTES", 1)
        add_up = workers.gradient_sum(order, model.rows_of_tokens)
    assert add_up is not None
    send = add_up._send_next
    add_up._send_next = lambda: (log.append("send"), send())[1]  # type: ignore[method-assign]
    for count in (FEW + MANY - tokens, tokens):  # an update does not see the one before it, of another size
        log.clear()
        model.zero_grad(set_to_none=True)
        workers.traffic.gradient = 0
        busy = rank < RANKS - 1  # the last rank has no block
        add_up.begin(inputs_of(rank, count) if busy else None, count)
        for i in range(PASSES if busy else 0):
            if i == PASSES - 1:
                add_up.last_pass()
            loss_of(model, inputs_of(rank, count)).backward()
        add_up.finish()
    return Told([p.grad for p in model.parameters() if p.grad is not None], workers.traffic.gradient, log)


@pytest.fixture(scope="module")
def told() -> list[dict[tuple[str, int], Told]]:
    """By rank; ranks take seconds to start."""
    return run_ranks(every_case_on_a_rank, RANKS)


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_the_sum_is_that_of_all_workers(told: list[dict], name: str, tokens: int) -> None:
    wanted = language_model(MODELS[name])
    for rank in range(RANKS - 1):
        (PASSES * loss_of(wanted, inputs_of(rank, tokens))).backward()
    for rank in told:
        for got, p in zip(rank[name, tokens].gradients, wanted.parameters(), strict=True):
            torch.testing.assert_close(got, p.grad, rtol=1e-12, atol=1e-12)


def test_a_rounded_gradient_sends_less(told: list[dict]) -> None:
    numbers = sum(p.numel() for p in language_model({}).parameters())
    for rank in told:
        exact, rounded = rank["gru", MANY], rank["rounded", MANY]
        assert (exact.sent, rounded.sent) == (8 * numbers, 2 * numbers)
        for got, wanted in zip(rounded.gradients, exact.gradients, strict=True):
            assert got.dtype == wanted.dtype
            assert not torch.equal(got, wanted)
            torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_rows_of_the_embedding_send_less(told: list[dict]) -> None:
    numbers = sum(p.numel() for p in language_model({}).parameters())
    types = len(torch.cat([inputs_of(rank, FEW).reshape(-1) for rank in range(RANKS - 1)]).unique())
    assert {rank["gru", MANY].sent for rank in told} == {8 * numbers}
    # a byte a type, and of the embedding's 6 columns the rows of the types that some worker has
    assert {rank["gru", FEW].sent for rank in told} == {8 * (numbers - 6 * (TYPES - types)) + TYPES}


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_the_first_bucket_is_sent_before_the_backward_pass_has_ended(told: list[dict], tokens: int) -> None:
    """And none in a pass that is not the last."""
    for rank in told[: RANKS - 1]:
        assert rank["gru", tokens].log == ["last parameter", "send", "last parameter", "send"]
    assert told[-1]["gru", tokens].log == ["send", "send"]


def test_parameters_are_in_the_order_in_which_a_backward_pass_ends() -> None:
    for parts in MODELS.values():
        model = language_model(parts)
        order, ended = model.in_backward_order(), []
        for p in order:
            p.register_post_accumulate_grad_hook(ended.append)
        loss_of(model, inputs_of(0, 60)).backward()
        place = {id(p): i for i, p in enumerate(order)}
        layers = {id(p): i for i, layer in enumerate(model.layers) for p in layer.parameters()}
        assert {id(p) for p in order} == {id(p) for p in model.parameters()}
        # within a layer torch decides
        coarse = [layers.get(id(p), -place[id(p)] - 10) for p in ended]
        wanted = [layers.get(id(p), -place[id(p)] - 10) for p in order]
        assert coarse == wanted


def test_a_model_does_not_keep_the_sum_and_so_its_group() -> None:
    model, world = language_model({}), Any
    parameters = model.in_backward_order()
    kept = weakref.ref(BucketedSum(parameters, None, Sum(world, Traffic())))  # type: ignore[arg-type]
    assert kept() is None
    loss_of(model, inputs_of(0, FEW)).backward()  # which the hooks then leave alone


def test_buckets_keep_order_size_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpdist.parallel.reduce.BUCKET_BYTES", 100)
    tensors = [torch.zeros(n) for n in (30, 20, 5, 1)] + [torch.zeros(1, dtype=torch.float64)]
    assert [[t.numel() for t in bucket] for bucket in buckets(tensors)] == [[30], [20, 5], [1], [1]]
