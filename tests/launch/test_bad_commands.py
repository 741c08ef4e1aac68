"""Bad input: exit code 2, one line, and nothing is changed by it."""
# ruff: noqa: E501 (the tables hold the lines as they are printed)

import json
import shlex
import shutil
from pathlib import Path

import pytest
from small_runs import interrupted, small, stop_at

import tpdist
from tpdist.cli import main

CONFIG = """\
data: {recipe: synthetic, store: store, synthetic: {types: 12, states: 4, branching: 2, tokens: 200}}
model: {hidden: 6}
objective: {block: 4}
batching: {streams: 2, blocks: 3}
run: {epochs: 1, device: cpu}
"""


@pytest.fixture(scope="module")
def workshop(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, its store, a finished run, one without an epoch, and others that are not whole."""
    path = tmp_path_factory.mktemp("workshop")
    shutil.copytree(small_corpus, path / "store")
    (path / "c.yaml").write_text(CONFIG)
    (path / "sweep.yaml").write_text(CONFIG + "sweep: {arms: {a: {set: {method.name: bptt}}}}\n")
    (path / "odd.yaml").write_text(CONFIG + "optimizer: {options: {foo: 1.0}}\n")
    tpdist.train(small(path / "store", run={"epochs": 1}), path / "done")
    interrupted(lambda: tpdist.train(small(path / "store"), path / "begun", stop_at(2)))
    shutil.copytree(path / "store", path / "old_store")
    manifest = json.loads((path / "store/manifest.json").read_text())
    (path / "old_store/manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    shutil.copytree(path / "store", path / "torn_store")
    with (path / "torn_store/train.arrow").open("r+b") as file:
        file.truncate(100)
    for name, damage in {
        "no_model": lambda run: (run / "models/best.safetensors").unlink(),
        "torn_model": lambda run: (run / "models/best.safetensors").write_bytes(b"torn"),
        "torn_about": lambda run: (run / "models/best.json").write_text("{"),
        "torn_config": lambda run: (run / "config.yaml").write_text("run: {epochs: x}\n"),
    }.items():
        shutil.copytree(path / "done", path / name)
        damage(path / name)
    (path / "empty").mkdir()
    (path / "file").write_text("mine")
    return path


OVER = "--run-dir new --set"
TRAIN = [
    ("train", "train: give a configuration file (before --set), or --resume RUN, and not both"),
    ("train c.yaml --resume begun", "train: give a configuration file (before --set), or --resume RUN, and not both"),
    ("train c.yaml --run-dir new --set cluster.workers=2 cluster.gpus_per_worker=1.5", "--set: cluster.gpus_per_worker: Ray gives a part of one GPU or whole ones, got 1.5"),
    ("train --resume begun --run-dir x", "train: --resume goes on in the run's own directory; leave --run-dir out"),
    ("train none.yaml", "none.yaml: no such file"),
    ("train empty", "empty: is a directory; give a YAML file in it"),
    ("train --set run.epochs=2", "train: give a configuration file (before --set), or --resume RUN, and not both"),
    ("train c.yaml --run-dir done", "done: exists already and is not overwritten; continue it with `tpdist train --resume done`, or give --run-dir a new name"),
    ("train c.yaml --run-dir empty", "empty: exists already and is not overwritten; give --run-dir a new name"),
    ("train c.yaml --run-dir file", "file: exists already and is not overwritten; give --run-dir a new name"),
    ("train c.yaml --run-dir file/new", "file/new: cannot be made: Not a directory"),
    ("train c.yaml --run-dir /proc/new", "/proc/new: cannot be made: No such file or directory"),
    (
        f"train c.yaml {OVER} cluster.workers=16",
        "--set: cluster.workers: 8 workers along time share windows of 3 blocks; use at most that many, or more "
        "batching.blocks",
    ),
    (f"train c.yaml {OVER} model.init_from=none", "--set: model.init_from: none: missing; give a safetensors file, such as an export's"),
    (f"train c.yaml {OVER} run.checkpoint_to=file", "--set: run.checkpoint_to: file: Not a directory; give a directory that can be written"),
    (f"train c.yaml {OVER} model.hidden=1000000000000", "--set: model.hidden: 12 types, embedding 1,000,000,000,000, 1 layers of 1,000,000,000,000 do not fit into memory; take fewer"),
    (f"train c.yaml {OVER} model.hidden=9223372036854775807", "--set: model.hidden: 12 types, embedding 9,223,372,036,854,775,807, 1 layers of 9,223,372,036,854,775,807 do not fit into memory; take fewer"),
    (f"train c.yaml {OVER} model.embedding=1000000000000", "--set: model.embedding: 12 types, embedding 1,000,000,000,000, 1 layers of 6 do not fit into memory; take fewer"),
    (f"train c.yaml {OVER} model.layers=1000000", "--set: model.layers: must be at most 1000, got 1000000"),
    (f"train c.yaml --address localhost {OVER} run.epochs=1", "--address localhost: must be auto, or host:port such as 10.0.0.5:6379"),
    (f"train c.yaml --address head:x {OVER} run.epochs=1", "--address head:x: must be auto, or host:port such as 10.0.0.5:6379"),
    (
        f"train c.yaml --address http://127.0.0.1:8265 {OVER} run.epochs=1",
        "--address http://127.0.0.1:8265: must be auto, or host:port such as 10.0.0.5:6379; the dashboard's is for tpdist submit",
    ),
    (f"train c.yaml --address ray://head:10001 {OVER} run.epochs=1", "--address ray://head:10001: must be auto, or host:port such as 10.0.0.5:6379"),
    (f"train c.yaml {OVER} run.device=cuda", "--set: run.device: torch sees no CUDA device here; write cpu or auto"),
    (f"train c.yaml {OVER} batching.streams=60", "--set: batching.streams: 60 streams of at least one block of 4 steps need 241 training tokens, the corpus has 200; use at most 49"),
    (f"train c.yaml {OVER} objective.block=150", "c.yaml:4: batching.streams: 2 streams of at least one block of 150 steps need 301 training tokens, the corpus has 200; use at most 1"),
    (f"train c.yaml {OVER} batching.streams=40", "c.yaml:4: batching.blocks: a window of 3 blocks is longer than a stream, which has 2 blocks of 4 steps; use at most 2, fewer streams, or batching.mode: batch"),
    (f"train c.yaml {OVER} batching.blocks=30", "--set: batching.blocks: a window of 30 blocks is longer than a stream, which has 25 blocks of 4 steps; use at most 25, fewer streams, or batching.mode: batch"),
    ("train odd.yaml --run-dir new", "odd.yaml:6: optimizer.options.foo: torch.optim.Adam takes no 'foo'; it takes betas, eps, weight_decay, amsgrad, foreach, maximize, capturable, differentiable, fused, decoupled_weight_decay"),
    (f"train odd.yaml {OVER} 'optimizer.options={{eps: -1}}'", "--set: optimizer.options.eps: torch.optim.Adam: Invalid epsilon value: -1.0"),
    (f"train c.yaml {OVER} 'method.h_optimizer.options={{momentum: -1}}'", "--set: method.h_optimizer.options.momentum: torch.optim.SGD: Invalid momentum value: -1.0"),
    (f"train c.yaml {OVER} model.cell=no_such:Cell model.allow_cells_from=[no_such]", "--set: model.cell: cannot load 'no_such:Cell': No module named 'no_such'; in the directory of no_such.py: write PYTHONPATH=. before the command"),
    (f"train c.yaml {OVER} model.cell=json:Cell model.allow_cells_from=[json]", "--set: model.cell: cannot load 'json:Cell': module 'json' has no attribute 'Cell'"),
    (f"train c.yaml {OVER} model.cell=json:loads model.allow_cells_from=[json]", "--set: model.cell: 'json:loads' is not a subclass of tpdist.models.Cell"),
    (f"train c.yaml {OVER} method.visit=json:no method.allow_visits_from=[json]", "--set: method.visit: cannot load 'json:no': module 'json' has no attribute 'no'"),
    (f"train c.yaml {OVER} method.name=pm objective.penalty=json:decoder objective.allow_penalties_from=[json]", "--set: objective.penalty: 'json:decoder' is not a function"),
    (f"train c.yaml {OVER} method.name=pm objective.penalty=operator:sub objective.allow_penalties_from=[operator]", "--set: objective.penalty: 'operator:sub' must return a number for each of the 4 boundaries it is given, a tensor [4]; it returned a tensor [4, 6]"),
    (f"train c.yaml {OVER} method.name=pm objective.penalty=operator:neg objective.allow_penalties_from=[operator]", "--set: objective.penalty: 'operator:neg' takes (a, /); it must take (target, prediction)"),
    (f"train c.yaml {OVER} method.visit=operator:neg method.allow_visits_from=[operator]", "--set: method.visit: 'operator:neg' takes (a, /); it must take (model, plan, theta, window, begin, boundaries, carried, neighbours)"),
    (f"train c.yaml {OVER} data.recipe=ptb data.store=ptb", "ptb: no such store; run `tpdist data prepare ptb --source DIR --out ptb`, or give data.source in the configuration"),
    (f"train c.yaml {OVER} data.synthetic.seed=4", "store: made with data.synthetic.seed 0, the configuration has 4; set data.synthetic.seed=0 to use it, or give data.store another directory, or delete this one"),
    (f"train c.yaml {OVER} data.store=old_store", "old_store/manifest.json: a store of version 0, this program reads version 1; prepare it again (tpdist data prepare)"),
    (f"train c.yaml {OVER} data.store=torn_store", "torn_store/train.arrow: 100 bytes, expected 658; the store is damaged: delete torn_store and prepare it again"),
    (f"train c.yaml {OVER} data.store=file", "file: a file; a store is a directory"),
    (f"train c.yaml {OVER} data.store=new_store data.synthetic.branching=13", "--set: data.synthetic.branching: 13 different types in a state, but there are only 12 types; at most data.synthetic.types"),
]  # fmt: skip
RESUME = [
    ("train --resume ''", ".: holds no config.yaml, so it is no run directory; give the directory that tpdist train printed"),
    ("train '' --run-dir new", ".: is a directory; give a YAML file in it"),
    ("train --resume nowhere", "nowhere: does not exist; give the directory that tpdist train printed"),
    ("train --resume empty", "empty: holds no config.yaml, so it is no run directory; give the directory that tpdist train printed"),
    ("train --resume file", "file: holds no config.yaml, so it is no run directory; give the directory that tpdist train printed"),
    ("train --resume torn_config", "torn_config/config.yaml:1: run.epochs: must be a whole number, got 'x'"),
    ("train --resume begun --set model.hidden=7", "begun/checkpoints/step-00000002: holds another model: parameter embedding.weight is (12, 6) there and (12, 7) in the configuration; use the configuration that it was trained with"),
    ("train --resume begun --set batching.streams=3", "begun/checkpoints/step-00000002: saved in the middle of an epoch, with batching.streams 2; the configuration has 3: leave it as it was"),
    ("train --resume begun --set data.store=other data.synthetic.seed=4", "begun: was trained on another corpus than the store at other now holds; prepare that corpus again or start a new run"),
    ("train --resume begun --set data.store=torn_store", "torn_store/train.arrow: 100 bytes, expected 658; the store is damaged: delete torn_store and prepare it again"),
    (
        "train --resume begun --set cluster.workers=4 cluster.mesh=[4,1]",
        "--set: cluster.mesh: 4 workers along stream share 2 streams; use at most that many, more batching.streams, or "
        "workers along time: mesh: [stream, time]",
    ),
]  # fmt: skip
READ = [
    ("evaluate nowhere", "nowhere: does not exist; give the directory that tpdist train printed"),
    ("evaluate begun", "begun/models/best.json: missing; the run has not finished an epoch yet, or somebody removed it; go on with `tpdist train --resume begun`"),
    ("evaluate begun --theta-lr 0.1", "--theta-lr: 0.1 is the size of no step; give --theta-steps too, such as 1"),
    ("evaluate begun --h-lr 1 --theta-steps 2", "--h-lr: 1 is the size of no step; give --h-steps too, such as 1"),
    ("evaluate no_model", "no_model/models/best.safetensors: missing; did the run finish an epoch?"),
    ("evaluate torn_model", "torn_model/models/best.safetensors: not a whole safetensors file (Error while deserializing header: header too small)"),
    ("evaluate torn_about", "torn_about/models/best.json: not what tpdist wrote; evaluate --model last, or train an epoch more, which writes it again"),
    ("evaluate done --h-steps -1", "--h-steps: must be at least 0, got -1"),
    ("evaluate done --h-steps 1 --h-lr 0", "--h-lr: must be a finite number above 0, got 0.0"),
    ("evaluate done --theta-steps -1", "--theta-steps: must be at least 0, got -1"),
    ("evaluate done --theta-steps 1 --theta-lr inf", "argument --theta-lr: must be a finite number, got inf; see tpdist evaluate --help"),
    ("evaluate done --h-steps 1 --h-lr nan", "argument --h-lr: must be a finite number, got nan; see tpdist evaluate --help"),
    ("evaluate done --h-steps 1 --h-lr big", "argument --h-lr: invalid number value: 'big'; see tpdist evaluate --help"),
    (
        "evaluate done --h-steps 1 --theta-steps 2",
        "--theta-steps: must be 0 beside H-steps, got 2; give one of the two",
    ),
    ("evaluate done --h-steps many", "argument --h-steps: invalid int value: 'many'; see tpdist evaluate --help"),
    ("evaluate done --split dev", "argument --split: invalid choice: 'dev' (choose from 'train', 'valid', 'test'); see tpdist evaluate --help"),
    ("evaluate done --set model.layers=2", "done/models/best.safetensors: holds another model: parameter layers.1.rnn.bias_hh_l0 is absent there and (18,) in the configuration; use the configuration that it was trained with"),
    ("evaluate done --set run.device=cuda", "--set: run.device: torch sees no CUDA device here; write cpu or auto"),
    ("sample done --prompt w1_hello", "'w1_hello' is not in the vocabulary of 12 types, which has no <unk>"),
    ("sample done --tokens 0", "--tokens: must be at least 1, got 0"),
    ("sample done --tokens -5", "--tokens: must be at least 1, got -5"),
    ("sample done --temperature -1", "--temperature: must be a number of at least 0, got -1.0"),
    ("sample done --temperature inf", "argument --temperature: must be a finite number, got inf; see tpdist sample --help"),
    ("sample done --top-k 0", "--top-k: must be at least 1, got 0"),
    ("sample done --seed -1", "--seed: must be at least 0 and below 2^63, got -1"),
    ("sample begun", "begun/models/best.json: missing; the run has not finished an epoch yet, or somebody removed it; go on with `tpdist train --resume begun`"),
    ("sweep c.yaml --dir ''", "argument --dir: must not be empty; see tpdist sweep --help"),
    ("sweep sweep.yaml --dir done", "done: is the directory of a run; move it away, or give `tpdist sweep` a new name by --dir"),
    ("sweep sweep.yaml --dir done --dry-run", "done: is the directory of a run; move it away, or give `tpdist sweep` a new name by --dir"),
    ("sweep sweep.yaml --dir file/new --dry-run", "file/new: cannot be written: Not a directory"),
    ("data prepare synthetic --out store", "store: exists and holds a store; it is not overwritten: give another directory or delete it"),
    ("data prepare text --out new", "data.source: recipe text needs it: tpdist data prepare text --source FILE --out new"),
    ("data prepare text --source file --column words --out new", "--column: words is a column of no Parquet file here; leave it out"),
    ("data prepare python-docs --source file --out new", "--source: recipe python-docs does not read it; leave it out"),
    ("data prepare text --out new --max-types few", "--max-types: data.max_types: must be a whole number or null, got 'few'"),
    ("data prepare text --out new --max-types 4 --set data.max_types=5", "--max-types: data.max_types: given twice; keep one"),
    ("plan c.yaml --workers 0", "--workers: cluster.workers: must be at least 1, got 0"),
    ("data prepare synthetic --out ''", "--out: data.store: must not be empty"),
    ("data prepare synthetic --out 'a\nb'", "--out: data.store: holds a line break or another control character: 'a\\nb'"),
    ("data prepare synthetic --out 'a\udcff'", "--out: data.store: holds a line break or another control character: 'a\\udcff'"),
    ("data prepare synthetic --out new --set data.store=other", "--out: data.store: given twice; keep one"),
    ("data prepare synthetic --out new --level char", "data.level: recipe synthetic has words only"),
    ("data prepare novel --out new", "argument recipe: invalid choice: 'novel' (choose from 'ptb', 'wikitext', 'text8', 'text', 'python-docs', 'synthetic'); see tpdist data prepare --help"),
    ("data prepare ptb", "the following arguments are required: --out; see tpdist data prepare --help"),
    ("data verify torn_store", "torn_store/train.arrow: 100 bytes, expected 658; the store is damaged: delete torn_store and prepare it again"),
    ("data verify empty", "empty: not a store (no manifest.json); prepare it again (tpdist data prepare) into another directory"),
    ("config show --set model.hiden=3", "--set: model.hiden: unknown key; did you mean model.hidden?"),
    ("", "the following arguments are required: COMMAND; see tpdist --help"),
    ("tarin", "argument COMMAND: invalid choice: 'tarin' (choose from 'train', 'evaluate', 'sample', 'export', 'checkpoint', 'submit', 'jobs', 'stop', 'doctor', 'sweep', 'reproduce', 'report', 'plot', 'bench', 'plan', 'data', 'config'); see tpdist --help"),
]  # fmt: skip


def listing(directory: Path) -> dict[str, int]:
    """Every file and directory, but what the preparation of another store leaves."""
    paths = [path for path in directory.rglob("*") if path.relative_to(directory).parts[0] != "other"]
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in paths if path.is_file()}


AT_WORK = ("--address", "/proc/new", "operator:sub")  # what only the run itself can find
DRY = [(f"{command} --dry-run", line) for command, line in TRAIN + RESUME if not any(x in command for x in AT_WORK)]


@pytest.mark.parametrize(("command", "line"), TRAIN + RESUME + READ + DRY, ids=lambda text: text[-60:])
def test_one_line(command: str, line: str, workshop: Path, monkeypatch, capsys):
    monkeypatch.chdir(workshop)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = listing(workshop)
    try:
        code = main(shlex.split(command))
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    # argparse quotes choices before Python 3.12 and not since
    assert printed.err.replace("'", "") == f"tpdist: {line}\n".replace("'", "")
    assert code == 2
    assert "Traceback" not in printed.out
    assert listing(workshop) == before
    assert not (workshop / "new").exists()
    assert not (workshop / "runs").exists()


SHUT = [
    ("train c.yaml --run-dir new", "new: cannot be made: Permission denied"),
    ("train --resume begun", "begun: cannot be written: Permission denied"),
    ("data prepare synthetic --out new", "new: cannot be written: Permission denied"),
    ("sweep sweep.yaml --dir new", "new: cannot be written: Permission denied"),
]


@pytest.mark.parametrize(("command", "line"), SHUT)
def test_a_dry_run_sees_a_place_that_cannot_be_written(command: str, line: str, workshop: Path, monkeypatch, capsys):
    """Root may write everywhere, so the system is made to say no."""
    monkeypatch.chdir(workshop)
    monkeypatch.setattr("os.access", lambda *_: False)
    before = listing(workshop)
    assert main(shlex.split(f"{command} --dry-run")) == 2
    assert capsys.readouterr().err == f"tpdist: {line}\n"
    assert listing(workshop) == before
