"""What one setting needs of many others, and parts that fit, though others like them do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tpdist.config import load_config

# what is printed, text of the file a.yaml, (line: key: what it takes and has)
NEEDS = [
    ("als alternates least squares and needs",
     "method: {name: als, bounded: true}\nmodel: {layers: 2, tied: true}\nobjective: {penalty: l2+kl}", [
        "1: method.bounded: false, got true",
        "2: model.cell: elman or mrnn, got gru",
        "2: model.activation: identity, got nothing",
        "2: model.layers: 1, got 2",
        "2: model.tied: false, got true",
        "3: objective.block: 1, got 20",
        "3: objective.loss_on: target, got prediction",
        "3: objective.penalty: l2, got l2+kl",
    ]),
    ("batching.recompute is for visits in place: it needs",
     "batching: {recompute: true, order: shuffled}\nobjective: {penalty: kl, loss_on: target}\n"
     "method:\n  {name: pm, h_steps: 2, theta_steps: 2, dual: {order: before}, bounded: true}", [
        "1: batching.mode: batch, got minibatch",
        "1: batching.order: sequential, got shuffled",
        "2: objective.penalty: l2, got kl",
        "2: objective.loss_on: prediction, got target",
        "3: method.first: persistent, got forward",
        "4: method.name: admm, got pm",
        "4: method.h_steps: 1, got 2",
        "4: method.theta_steps: 1, got 2",
        "4: method.dual.order: after, got before",
        "4: method.bounded: false, got true",
    ]),
    ("batching.recompute is for visits in place: it needs",
     "batching: {recompute: true, mode: batch}\nmethod: {first: persistent, closing: true}", [
        "2: method.closing: false, got true",
    ]),
]  # fmt: skip

# what is like one of those, and fits
GOOD = [
    "method: {edge_costate: kept}",  # which admm does not read
    "method: {name: costate, first: persistent, relaxation: 0}\nbatching: {order: shuffled, blocks: 1}",  # handed on
    "method: {first: persistent, relaxation: 0, visit: own:visit, allow_visits_from: [own]}",  # moves what it likes
    "method: {name: als, first: persistent, relaxation: 0}\nmodel: {cell: elman, activation: identity}\n"
    "objective: {block: 1, loss_on: target}",
    "method: {visit: own:visit, allow_visits_from: [own], h_optimizer: {name: adam}}",
    "objective: {weight: 1e-35}",
    "cluster: {workers: {min: 2, max: 2}}",
    "cluster: {workers: {min: 1, max: 36}}",  # one fits
    "cluster: {workers: 4, mesh: [4, 1]}",
    "cluster: {workers: 9, mesh: [1, 9]}\nbatching: {mode: batch}",
]


@pytest.mark.parametrize(("why", "text", "lines"), NEEDS)
def test_what_one_part_needs_of_others(why: str, text: str, lines: list[str], said: Callable):
    parted = [line.split(": ", 2) for line in lines]
    assert said(text) == [f"a.yaml:{at}: {key}: {why} {rest}" for at, key, rest in parted]


@pytest.mark.parametrize("text", GOOD)
def test_parts_that_fit(text: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(text)
    load_config(tmp_path / "a.yaml")
