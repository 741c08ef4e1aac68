"""Keys and values that cannot be, each with all that is printed for it."""

from collections.abc import Callable

import pytest

DATA_KEYS = "recipe, store, source, train, valid, test, column, level, max_types, min_count, max_tokens, synthetic"
PARTS = "preset, data, model, objective, method, batching, optimizer, run, cluster, sweep"
METHODS = "bptt, pm, admm, alm, costate, als"
OPTION = "must be a number, true or false, or a list of two numbers"

# (text of the file a.yaml, lines that are printed)
BAD = [
    # keys
    ("method:\n  h_stpes: 2", ["a.yaml:2: method.h_stpes: unknown key; did you mean method.h_steps?"]),
    ("h_steps: 2", ["a.yaml:1: h_steps: unknown key; did you mean method.h_steps?"]),
    ("model: {block: 5}", ["a.yaml:1: model.block: unknown key; did you mean objective.block?"]),
    (
        "model: {lr: 0.1}",
        ["a.yaml:1: model.lr: unknown key; did you mean method.h_optimizer.lr or method.dual.lr or optimizer.lr?"],
    ),
    ("modle: {hidden: 5}", ["a.yaml:1: modle: unknown key; did you mean model?"]),
    ("data: {xyzzy: 1}", [f"a.yaml:1: data.xyzzy: unknown key; data has {DATA_KEYS}"]),
    ("12: 1", [f"a.yaml:1: 12: unknown key; a configuration has {PARTS}"]),
    ("method.h_steps: 2", ["a.yaml:1: method.h_steps: unknown key; in a file write h_steps below method:"]),
    ("run: {seed: 1}\nmodel: {}\nrun: {seed: 2}", ["a.yaml:3: run: written on lines 1 and 3; keep one"]),
    ("run:\n  seed: 1\n  seed: 1", ["a.yaml:3: run.seed: written on lines 2 and 3; keep one"]),
    ("? [a, b]\n: 1", ["a.yaml:1: a key must be a plain word"]),
    ("run: {'': 1}", ["a.yaml:1: run: a key must be a plain word"]),
    (
        "sweep:\n  grid: {method.h_stpes: [1, 2]}",
        ["a.yaml:2: sweep.grid.method.h_stpes: unknown key; did you mean method.h_steps?"],
    ),
    # kinds
    ("method: {h_steps: 2.5}", ["a.yaml:1: method.h_steps: must be a whole number, got 2.5"]),
    ("method: {h_steps: '2'}", ["a.yaml:1: method.h_steps: must be a whole number, got '2'; write it without quotes"]),
    ("method: {h_steps: true}", ["a.yaml:1: method.h_steps: must be a whole number, got true"]),
    ("method: {h_steps: }", ["a.yaml:1: method.h_steps: must be a whole number, got nothing"]),
    ("data: {max_types: 1e4}", ["a.yaml:1: data.max_types: must be a whole number or null, got 1e4; write 10000"]),
    ("data: {max_types: 1e30}", ["a.yaml:1: data.max_types: must be a whole number or null, got 1e30"]),
    ("run: {seed: 0x10}", ["a.yaml:1: run.seed: must be a whole number, got '0x10'"]),
    ("run: {seed: 010}", ["a.yaml:1: run.seed: 010 begins with 0; write 10, or '010' in quotes if it is text"]),
    ("run: {name: 001}", ["a.yaml:1: run.name: 001 begins with 0; write 1, or '001' in quotes if it is text"]),
    ("run: {name: 1e3}", ["a.yaml:1: run.name: must be text, got 1e3; put it in quotes: '1e3'"]),
    ("data: {store: 12}", ["a.yaml:1: data.store: must be text or null, got 12; put it in quotes: '12'"]),
    ("data: {store: [a]}", ["a.yaml:1: data.store: must be text or null, got ['a']"]),
    ("optimizer: {lr: fast}", ["a.yaml:1: optimizer.lr: must be a number, got 'fast'"]),
    ("optimizer: {lr: false}", ["a.yaml:1: optimizer.lr: must be a number, got false"]),
    ("optimizer: {lr: .nan}", ["a.yaml:1: optimizer.lr: must be finite, got .nan"]),
    ("optimizer: {lr: -.inf}", ["a.yaml:1: optimizer.lr: must be finite, got -.inf"]),
    ("optimizer: {lr: 1e999}", ["a.yaml:1: optimizer.lr: must be finite, got 1e999"]),
    (
        "run: {epochs: 99999999999999999999}",
        ["a.yaml:1: run.epochs: 99999999999999999999 is too large; the largest is 9223372036854775807"],
    ),
    (
        "method: {edge_free: yes}",
        ["a.yaml:1: method.edge_free: yes may be a boolean or text; write true, or 'yes' in quotes"],
    ),
    ("run: {name: off}", ["a.yaml:1: run.name: off may be a boolean or text; write false, or 'off' in quotes"]),
    ("method: {edge_free: 1}", ["a.yaml:1: method.edge_free: must be true or false, got 1"]),
    (
        "method: {edge_free: 'true'}",
        ["a.yaml:1: method.edge_free: must be true or false, got 'true'; write it without quotes"],
    ),
    (
        "cluster: 8",
        [
            "a.yaml:1: cluster: takes keys of its own (workers, mesh, cpus_per_worker, gpus_per_worker, "
            "gradient_dtype, wait_s, heartbeat_s, rejoin_s, max_restarts, restart_window_s, exchange_s), got 8"
        ],
    ),
    (
        "cluster: [8]",
        [
            "a.yaml:1: cluster: takes keys of its own (workers, mesh, cpus_per_worker, gpus_per_worker, "
            "gradient_dtype, wait_s, heartbeat_s, rejoin_s, max_restarts, restart_window_s, exchange_s), got [8]"
        ],
    ),
    (
        "cluster: {mesh: 4}",
        ["a.yaml:1: cluster.mesh: must be a list [whole number, whole number] or null, got 4"],
    ),
    (
        "cluster: {mesh: [4]}",
        ["a.yaml:1: cluster.mesh: must be a list [whole number, whole number] or null, got [4]"],
    ),
    (
        "cluster: {mesh: [1, 2, 3]}",
        ["a.yaml:1: cluster.mesh: must be a list [whole number, whole number] or null, got [1, 2, 3]"],
    ),
    ("cluster:\n  mesh: [1,\n    2.5]", ["a.yaml:3: cluster.mesh[1]: must be a whole number, got 2.5"]),
    ("optimizer: {options: {eps: small}}", [f"a.yaml:1: optimizer.options.eps: {OPTION}, got 'small'"]),
    ("optimizer: {options: {betas: [0.9, b]}}", [f"a.yaml:1: optimizer.options.betas: {OPTION}, got [0.9, 'b']"]),
    ("optimizer: {options: 3}", ["a.yaml:1: optimizer.options: must be a mapping of keys to values, got 3"]),
    ("cluster: {workers: 0}", ["a.yaml:1: cluster.workers: must be at least 1, got 0"]),
    ("cluster: {workers: {min: 2, max: x}}", ["a.yaml:1: cluster.workers.max: must be a whole number, got 'x'"]),
    ("cluster: {workers: {min: 2}}", ["a.yaml:1: cluster.workers.min: max is missing; write both"]),
    ("sweep:\n  random: {seed: 1}", ["a.yaml:2: sweep.random.seed: count is missing; write both"]),
    (
        "cluster: {workers: {}}",
        ["a.yaml:1: cluster.workers: must be a whole number or {min: ..., max: ...}, got {}"],
    ),
    # values
    ("objective: {block: 0}", ["a.yaml:1: objective.block: must be at least 1, got 0"]),
    ("data: {synthetic: {seed: -1}}", ["a.yaml:1: data.synthetic.seed: must be at least 0, got -1"]),
    ("objective: {weight: -1}", ["a.yaml:1: objective.weight: must be at least 0, got -1"]),
    ("model: {init: 1e31}", ["a.yaml:1: model.init: must be at most 1e+30, got 1e31"]),
    ("method: {dual: {clip: 1e99}}", ["a.yaml:1: method.dual.clip: must be at most 1e+30, got 1e99"]),
    ("cluster: {exchange_s: 1e12}", ["a.yaml:1: cluster.exchange_s: must be at most 1e+09, got 1e12"]),
    ("optimizer: {lr: 0}", ["a.yaml:1: optimizer.lr: must be above 0, got 0"]),
    ("optimizer: {decay: {factor: 1.5}}", ["a.yaml:1: optimizer.decay.factor: must be below 1, got 1.5"]),
    ("optimizer: {decay: {start_epoch: 1}}", ["a.yaml:1: optimizer.decay.start_epoch: must be at least 2, got 1"]),
    ("method: {name: admn}", [f"a.yaml:1: method.name: must be one of {METHODS}; got 'admn'; did you mean admm?"]),
    (
        "run: {track: [tensorbord]}",
        [
            "a.yaml:1: run.track[0]: must be one of tensorboard, mlflow, wandb; got 'tensorbord'; did you mean "
            "tensorboard?"
        ],
    ),
    ("method: {name: null}", [f"a.yaml:1: method.name: must be one of {METHODS}; got null"]),
    ("preset: parer", ["a.yaml:1: preset: must be one of paper, released or null; got 'parer'; did you mean paper?"]),
    (
        "run: {name: a/b}",
        [
            "a.yaml:1: run.name: must be made of letters, digits, '.', '_' and '-', "
            "the first a letter or a digit; got 'a/b'"
        ],
    ),
    ("data: {store: ''}", ["a.yaml:1: data.store: must not be empty"]),
    (
        'data: {store: "a\\nb"}',
        ["a.yaml:1: data.store: holds a line break or another control character: 'a\\nb'"],
    ),
    (
        'data: {store: "\\ud800"}',
        ["a.yaml:1: data.store: holds a line break or another control character: '\\ud800'"],
    ),
    # everything at once, in the order of the file
    (
        "method:\n  h_stpes: 1\n  theta_steps: 0\nrun:\n  seed: no\n  epochs: many\ncluster: {mesh: [2, 2]}",
        [
            "a.yaml:2: method.h_stpes: unknown key; did you mean method.h_steps?",
            "a.yaml:3: method.theta_steps: must be at least 1, got 0",
            "a.yaml:5: run.seed: no may be a boolean or text; write false, or 'no' in quotes",
            "a.yaml:6: run.epochs: must be a whole number, got 'many'",
        ],
    ),
]


@pytest.mark.parametrize(("text", "lines"), BAD, ids=[text[:40] for text, _ in BAD])
def test_file(text: str, lines: list[str], said: Callable):
    assert said(text) == lines
