"""Bad configurations, each with all that is printed for it."""

from pathlib import Path

import pytest

from tpdist.config import load_config
from tpdist.errors import ConfigError

DATA_KEYS = "recipe, store, source, train, valid, test, column, level, max_types, min_count, max_tokens, synthetic"
PARTS = "preset, data, model, objective, method, batching, optimizer, run, cluster, sweep"
METHODS = "bptt, pm, admm, alm, costate, als"
OPTION = "must be a number, true or false, or a list of two numbers"
NO_KEYS = "holds no keys; write what differs from the defaults, such as run: {name: first}"

# (text of the file a.yaml, lines that are printed)
BAD_FILES = [
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
    # values
    ("objective: {block: 0}", ["a.yaml:1: objective.block: must be at least 1, got 0"]),
    ("objective: {weight: -1}", ["a.yaml:1: objective.weight: must be at least 0, got -1"]),
    ("optimizer: {lr: 0}", ["a.yaml:1: optimizer.lr: must be above 0, got 0"]),
    ("optimizer: {decay: {factor: 1.5}}", ["a.yaml:1: optimizer.decay.factor: must be below 1, got 1.5"]),
    (
        "optimizer: {decay: {start_epoch: 3, patience: 1}}",
        [
            "a.yaml:1: optimizer.decay.patience: with start_epoch the rate falls whether validation does or not; "
            "leave it out, got 1"
        ],
    ),
    ("optimizer: {decay: {start_epoch: 1}}", ["a.yaml:1: optimizer.decay.start_epoch: must be at least 2, got 1"]),
    ("method: {name: admn}", [f"a.yaml:1: method.name: must be one of {METHODS}; got 'admn'; did you mean admm?"]),
    (
        "run: {track: [tensorbord]}",
        [
            "a.yaml:1: run.track[0]: must be one of tensorboard, mlflow, wandb; got 'tensorbord'; did you mean "
            "tensorboard?"
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
    # parts that do not fit each other
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
    ("cluster: {workers: 0}", ["a.yaml:1: cluster.workers: must be at least 1, got 0"]),
    ("cluster: {workers: {min: 2, max: x}}", ["a.yaml:1: cluster.workers.max: must be a whole number, got 'x'"]),
    ("cluster: {workers: {min: 2}}", ["a.yaml:1: cluster.workers.min: max is missing; write both"]),
    ("sweep:\n  random: {seed: 1}", ["a.yaml:2: sweep.random.seed: count is missing; write both"]),
    (
        "cluster: {workers: {}}",
        ["a.yaml:1: cluster.workers: must be a whole number or {min: ..., max: ...}, got {}"],
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
    # what is not YAML, or not the YAML allowed here
    ("", [f"a.yaml: {NO_KEYS}"]),
    ("# nothing yet\n", [f"a.yaml: {NO_KEYS}"]),
    ("just words", ["a.yaml:1: must be keys with values, such as run: {name: first}, not one value or a list"]),
    ("- a\n- b", ["a.yaml:1: must be keys with values, such as run: {name: first}, not one value or a list"]),
    ("run:\n  seed: 1: 2", ["a.yaml:2: not valid YAML: mapping values are not allowed here"]),
    ("run:\n\tseed: 1", ["a.yaml:2: not valid YAML: a tab where YAML wants spaces; indent with spaces"]),
    ("run: {}\n---\nrun: {}", ["a.yaml:2: not valid YAML: a second document begins; a file holds one configuration"]),
    ("run: {name: \x07}", ["a.yaml:1: a control character, U+0007; remove it"]),
    ('run: {name: "\\UFFFFFFFF"}', ["a.yaml:1: not valid YAML: a number or an escape that is out of range"]),
    (
        "run: !!python/object/apply:os.system ['true']",
        [
            "a.yaml:1: tags are not allowed, got tag:yaml.org,2002:python/object/apply:os.system; "
            "remove it, or quote the text"
        ],
    ),
    (
        "run: &a {seed: 1}\nmodel: *a",
        ["a.yaml:1: anchors (&) and aliases (*) are not allowed; write the value out, or quote the text"],
    ),
    ("sweep: " + "[" * 5000, ["a.yaml:1: nested more than 12 levels deep"]),
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


def lines_of(path: Path | None, overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(("text", "lines"), BAD_FILES, ids=[text[:40] for text, _ in BAD_FILES])
def test_file(text: str, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text, encoding="utf-8")
    assert lines_of(Path("a.yaml"), []) == lines


@pytest.mark.parametrize(("overrides", "lines"), BAD_OVERRIDES, ids=[str(one) for one, _ in BAD_OVERRIDES])
def test_override(overrides: list[str], lines: list[str]):
    assert lines_of(None, overrides) == lines


def test_file_and_override_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("run: {seed: x}")
    assert lines_of(Path("a.yaml"), ["cluster.workers.max=2"])[1:] == [
        "--set: cluster.workers.max: min is missing; write both"
    ]
    assert lines_of(Path("a.yaml"), ["objective.block=0"]) == [
        "a.yaml:1: run.seed: must be a whole number, got 'x'",
        "--set: objective.block: must be at least 1, got 0",
    ]


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("latin.yaml").write_bytes(b"run:\n  name: caf\xe9\n")
    Path("long.yaml").write_bytes(b"# " + b"x" * 300_000)
    Path("folder").mkdir()
    assert lines_of(Path("none.yaml"), []) == ["none.yaml: no such file"]
    assert lines_of(Path("folder"), []) == ["folder: is a directory; give a YAML file in it"]
    assert lines_of(Path("latin.yaml"), []) == [
        "latin.yaml:2: not UTF-8 text: byte 0xe9 at offset 16; save the file as UTF-8"
    ]
    assert lines_of(Path("long.yaml"), []) == ["long.yaml: is larger than 256 KiB; a configuration is a short text"]
    assert lines_of(Path("a\0b"), []) == ["a\\x00b: cannot be read: embedded null byte"]
    said = "path: must be a file's name, got {'run': 1}; settings are overrides, as ['run.epochs=1']"
    assert lines_of({"run": 1}, []) == [said]  # type: ignore[arg-type]
