"""Overrides that cannot be, each with all that is printed for it."""

from collections.abc import Callable

import pytest

# (overrides, lines that are printed)
BAD_OVERRIDES = [
    (["method.h_stpes=2"], ["--set: method.h_stpes: unknown key; did you mean method.h_steps?"]),
    (["h_steps=2"], ["--set: h_steps: unknown key; did you mean method.h_steps?"]),
    (["method.daul.lr=2"], ["--set: method.daul.lr: unknown key; did you mean method.dual.lr?"]),
    (["run.seed.x=2"], ["--set: run.seed.x: unknown key; run.seed has no keys, it is a whole number"]),
    (["run.seed"], ["--set: 'run.seed' has no '='; write key=value, such as method.h_steps=2"]),
    (["=3"], ["--set: '=3' has no key; write key=value, such as method.h_steps=2"]),
    (["run.seed=1", "run.seed=2"], ["--set: run.seed: given twice; keep one"]),
    (["data.max_types=1e4"], ["--set: data.max_types: must be a whole number or null, got 1e4; write 10000"]),
    (["run.seed="], ["--set: run.seed: must be a whole number, got nothing"]),
    (
        ["run.seed=[1"],
        [
            "--set: run.seed: not valid YAML: expected ',' or ']', but got '<stream end>'; close what is open, and "
            "quote a value with spaces"
        ],
    ),
    (
        ["optimizer.momentum=0.9"],
        ["--set: optimizer.momentum: unknown key; options of torch's own optimizers stand below optimizer.options"],
    ),
    (
        ["method.h_optimizer="],
        ["--set: method.h_optimizer: takes keys of its own (name, lr, clip, options), got nothing"],
    ),
    (
        ["data.synthetic=null"],
        ["--set: data.synthetic: takes keys of its own (types, states, branching, tokens, seed), got nothing"],
    ),
    (
        ["method={h_steps: 2, dual: , h_optimizer: null}"],
        [
            "--set: method.dual: takes keys of its own (lr, clip, start_epoch, keep, order), got nothing",
            "--set: method.h_optimizer: takes keys of its own (name, lr, clip, options), got nothing",
        ],
    ),
    (["objective.lambda=0.9"], ["--set: objective.lambda: unknown key; λ is objective.weight"]),
    (
        ["optimizer.options={momentum:0.9}"],
        [
            "--set: optimizer.options.momentum:0.9: must be a number, true or false, or a list of two numbers, got "
            "nothing; a space is missing behind the colon"
        ],
    ),
    (
        ["cluster.workers={min:2,max:4}"],
        [
            "--set: cluster.workers.min:2: a space is missing behind the colon",
            "--set: cluster.workers.max:4: a space is missing behind the colon",
        ],
    ),
    (
        ["cluster.workers={mni: 2, max: 4}"],
        ["--set: cluster.workers.mni: unknown key; did you mean cluster.workers.min?"],
    ),
    (["method={name:pm, h_steps: 2}"], ["--set: method.name:pm: a space is missing behind the colon"]),
    (["method.edge_free=on"], ["--set: method.edge_free: on may be a boolean or text; write true, or 'on' in quotes"]),
    (["data.store=a\nb"], ["--set: data.store: holds a line break or another control character: 'a\\nb'"]),
    (["cluster.mesh=[1,2]"], ["--set: cluster.mesh: 1 x 2 = 2 places for 1 workers; make them equal, or write null"]),
    (["modell.hidden=5"], ["--set: modell.hidden: unknown key; did you mean model.hidden?"]),
    (["modell.x=5"], ["--set: modell.x: unknown key; did you mean model?"]),
    (["method={h_stpes: 2}"], ["--set: method.h_stpes: unknown key; did you mean method.h_steps?"]),
    (["optimizer.options.=1"], ["--set: optimizer.options.: a name is missing after the dot"]),
    (
        ["run.seed=-1", "objective.block=x"],
        [
            "--set: run.seed: must be at least 0, got -1",
            "--set: objective.block: must be a whole number, got 'x'",
        ],
    ),
]


@pytest.mark.parametrize(("overrides", "lines"), BAD_OVERRIDES, ids=[str(one) for one, _ in BAD_OVERRIDES])
def test_override(overrides: list[str], lines: list[str], said: Callable):
    assert said(None, overrides) == lines


def test_file_and_override_are_told_together(said: Callable):
    text = "run: {seed: x}"
    wrong = "a.yaml:1: run.seed: must be a whole number, got 'x'"
    assert said(text, ["cluster.workers.max=2"]) == [wrong, "--set: cluster.workers.max: min is missing; write both"]
    assert said(text, ["objective.block=0"]) == [wrong, "--set: objective.block: must be at least 1, got 0"]
