"""Parts of a configuration that do not fit each other, each with all that is printed for it."""

from collections.abc import Callable

import pytest

# (text of the file a.yaml, lines that are printed)
BAD = [
    (
        "model:\n  cell: gur",
        ["a.yaml:2: model.cell: unknown cell 'gur'; choose elman, gru, lstm, mrnn or package.module:Class"],
    ),
    (
        "model:\n  cell: mine.cells:Own",
        [
            "a.yaml:2: model.cell: 'mine.cells:Own' is not in a package that model.allow_cells_from lists; "
            "add 'mine' to it"
        ],
    ),
    (
        "objective:\n  penalty: l3",
        ["a.yaml:2: objective.penalty: unknown penalty 'l3'; choose l2, kl, l2+kl or package.module:function"],
    ),
    (
        "method: {name: pm}\nobjective:\n  penalty: mine:huber",
        [
            "a.yaml:3: objective.penalty: 'mine:huber' is not in a package that objective.allow_penalties_from lists; "
            "add 'mine' to it"
        ],
    ),
    (
        "objective:\n  penalty: mine:huber\n  allow_penalties_from: [mine]",
        [
            "a.yaml:2: objective.penalty: mine:huber has no dual, and admm is made of duals; "
            "write l2, l2+kl, or method.name: pm"
        ],
    ),
    (
        "method:\n  visit: mine:visit",
        [
            "a.yaml:2: method.visit: 'mine:visit' is not in a package that method.allow_visits_from lists; "
            "add 'mine' to it"
        ],
    ),
    (
        "method:\n  visit: mine\n  allow_visits_from: [mine]",
        ["a.yaml:2: method.visit: 'mine' names no function; write package.module:function"],
    ),
    (
        "cluster: {workers: 3, mesh: [2, 2]}",
        ["a.yaml:1: cluster.mesh: 2 x 2 = 4 places for 3 workers; make them equal, or write null"],
    ),
    (
        "cluster: {workers: {min: 3, max: 2}}",
        ["a.yaml:1: cluster.workers.min: min 3 is above max 2; make it at most that"],
    ),
    (
        "cluster: {workers: {min: 2, max: 4}, mesh: [2, 2]}",
        [
            "a.yaml:1: cluster.mesh: a fixed mesh does not fit a number of workers that changes; leave it out, and it "
            "follows from the number"
        ],
    ),
    (
        "cluster: {workers: 6, mesh: [6, 1]}",
        [
            "a.yaml:1: cluster.mesh: 6 workers along stream share 4 streams; use at most that many, more "
            "batching.streams, or workers along time: mesh: [stream, time]"
        ],
    ),
    (
        "cluster: {workers: 36}",
        [
            "a.yaml:1: cluster.workers: 9 workers along time share windows of 8 blocks; use at most that many, or "
            "more batching.blocks"
        ],
    ),
    (
        "method: {starts: tied, first: persistent}\nbatching: {mode: batch, recompute: true}",
        ["a.yaml:1: method.starts: batching.recompute is for visits in place: it needs held, got tied"],
    ),
    (
        "run: {cuda_graph: true, on_non_finite: skip}\nmethod:\n  first: persistent\n  relaxation: 1\n"
        "  h_optimizer: {name: adagrad, lr: 0.1}\ncluster: {workers: 2}",
        [
            "a.yaml:1: run.on_non_finite: run.cuda_graph records whole updates: it needs stop, got skip",
            "a.yaml:5: method.h_optimizer: run.cuda_graph records whole updates: it needs sgd without options, or "
            "adagrad on states made anew, got adagrad",
            "a.yaml:6: cluster.workers: run.cuda_graph records whole updates: it needs 1, since messages are not "
            "recorded, got 2",
        ],
    ),
    (
        "method: {name: pm}\nobjective: {penalty: own:huber, allow_penalties_from: [own]}\nrun: {cuda_graph: true}",
        [
            "a.yaml:2: objective.penalty: run.cuda_graph records whole updates: it needs a built-in one, since "
            "constraints are not counted, got own:huber",
        ],
    ),
    (
        "data: {recipe: text, source: a.txt, test: b.txt}",
        ["a.yaml:1: data.source: one file to cut, or three files; got both, leave 'a.txt' out"],
    ),
    (
        "run: {cuda_graph: true}\nmethod:\n  h_optimizer: {name: adam, lr: 0.1}\n"
        "optimizer:\n  name: adagrad\n  options: {lr_decay: 0.1}",
        [
            "a.yaml:3: method.h_optimizer: run.cuda_graph records whole updates: it needs sgd without options, or "
            "adagrad on states made anew, got adam",
            "a.yaml:6: optimizer.options.lr_decay: run.cuda_graph records whole updates: it needs 0, since the rate is "
            "recorded too, got 0.1",
        ],
    ),
    (
        "method: {name: admm}\nobjective:\n  penalty: kl\n  weight: 0",
        [
            "a.yaml:3: objective.penalty: kl has no dual, and admm is made of duals; "
            "write l2, l2+kl, or method.name: pm",
            "a.yaml:4: objective.weight: admm needs a weight above 0, got 0; for no penalty write method.name: bptt",
        ],
    ),
    (
        "method: {name: costate, first: persistent, relaxation: 0}",
        [
            "a.yaml:1: method.relaxation: persistent states that neither H-steps (starts: tied) nor relaxation moves "
            "stay 0 for ever; write 1 or more"
        ],
    ),
    (
        "method: {h_optimizer: {name: adagrad}}",
        [
            "a.yaml:1: method.h_optimizer.lr: adagrad needs one: the default 1/λ is a plain gradient step's; write "
            "h_optimizer.name: sgd, or the size of a step, such as 0.1"
        ],
    ),
    (
        "objective: {weight_growth: 1e155}\nrun: {epochs: 4}",
        [
            "a.yaml:1: objective.weight_growth: 1e+155 takes λ from 0.1 to 1e+464 in epoch 4, the last; between 1e-30 "
            "and 1e+30 it can be computed with"
        ],
    ),
    (
        "optimizer: {decay: {start_epoch: 3, patience: 1}}",
        [
            "a.yaml:1: optimizer.decay.patience: with start_epoch the rate falls whether validation does or not; "
            "leave it out, got 1"
        ],
    ),
    (
        "method: {name: costate, edge_costate: kept, edge: zero}",
        [
            "a.yaml: batching.order: method.edge_costate: kept is for windows in random order that go on from stored "
            "states: it needs shuffled, got sequential",
            "a.yaml:1: method.edge: method.edge_costate: kept is for windows in random order that go on from stored "
            "states: it needs carry, got zero",
        ],
    ),
    (
        "method: {name: als}\nmodel: {cell: elman, activation: identity}\nobjective: {block: 1, loss_on: target}\n"
        "cluster: {gradient_dtype: bfloat16}",
        ["a.yaml:4: cluster.gradient_dtype: als alternates least squares and needs null, got bfloat16"],
    ),
    (
        "method: {name: admm, starts: tied, edge_free: true, h_steps: 0}",
        ["a.yaml:1: method.edge_free: edge_free moves states by H-steps, and h_steps is 0"],
    ),
    (
        "run: {seed: 1}\npreset: released\nobjective: {loss_on: target}",
        ["a.yaml:2: method.closing: a closing target cannot carry the loss; write objective.loss_on: prediction"],
    ),
]

BAD += [
    ("model:\n  cell: mineral.cells:Own\n  allow_cells_from: [mine]", [  # which is no package of mine
        "a.yaml:2: model.cell: 'mineral.cells:Own' is not in a package that model.allow_cells_from lists; "
        "add 'mineral' to it",
    ]),
    ("model:\n  activation: tanh\n  tied: true\n  embedding: 5", [
        "a.yaml:2: model.activation: only elman and mrnn take an activation, the cell is 'gru'",
        "a.yaml:4: model.embedding: tied needs embedding = hidden, got 5 and 200",
    ]),
    ("method: {name: pm, edge_free: true}", [
        "a.yaml:1: method.edge_free: edge_free moves a start, and starts: held moves none; write starts: tied",
    ]),
    ("method: {bounded: true}\nmodel: {cell: lstm}", [
        "a.yaml:1: method.bounded: an lstm's c is not in (-1, 1), so h = tanh(z) cannot hold it",
    ]),
    ("method: {bounded: true}\nmodel: {cell: elman, activation: identity}", [
        "a.yaml:1: method.bounded: the state of elman with activation identity is not in (-1, 1), so h = tanh(z) "
        "cannot hold it",
    ]),
    ("method: {bounded: true}\nmodel: {cell: own:Cell, allow_cells_from: [own]}", [
        "a.yaml:1: method.bounded: the state of own:Cell is not in (-1, 1), so h = tanh(z) cannot hold it",
    ]),
    ("method: {closing: true}\nbatching: {order: shuffled}", [
        "a.yaml:1: method.closing: a closing target belongs to windows in order; write batching.order: sequential",
    ]),
    ("method: {name: alm, h_steps: 0, h_optimizer: {name: adam}}", [  # which moves H with θ
        "a.yaml:1: method.h_optimizer.lr: adam needs one: the default 1/λ is a plain gradient step's; write "
        "h_optimizer.name: sgd, or the size of a step, such as 0.1",
    ]),
    ("objective: {weight_growth: 1e-155}\nrun: {epochs: 4}", [
        "a.yaml:1: objective.weight_growth: 1e-155 takes λ from 0.1 to 1e-466 in epoch 4, the last; between 1e-30 "
        "and 1e+30 it can be computed with",
    ]),
    ("method: {name: pm}\nobjective: {penalty: kl, kl_weight: 1e20, weight_growth: 1000}\nrun: {epochs: 5}", [
        "a.yaml:2: objective.weight_growth: 1000 takes λ from 1e+20 to 1e+32 in epoch 5, the last; between 1e-30 and "
        "1e+30 it can be computed with",
    ]),
    ("cluster: {gpus_per_worker: 1e-5}", [
        "a.yaml:1: cluster.gpus_per_worker: Ray gives no less than 0.0001 of a GPU, got 1e-05",
    ]),
    ("method: {name: als, visit: v:f, allow_visits_from: [v]}\nmodel: {cell: elman, activation: identity}\n"
     "objective: {block: 1, loss_on: target, weight: 0}", [
        "a.yaml:1: method.visit: als has a visit of its own; write another method.name beside yours",
        "a.yaml:3: objective.weight: als needs a weight above 0, got 0; for no penalty write method.name: bptt",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), BAD, ids=[text[:40] for text, _ in BAD])
def test_parts_that_do_not_fit(text: str, lines: list[str], said: Callable):
    assert said(text) == lines
