"""What somebody wrote and no method reads is said; what a file holds for another method is not."""

from pathlib import Path
from typing import get_args

import pytest

from tpdist.config import RECIPES_READ, Data, load_config, to_yaml, unread, unread_by_all
from tpdist.data.manifest import NO_FILES

FILE = "method: {name: admm, h_steps: 2, dual: {lr: 0.1}}\nobjective: {weight: 0.5}\n"
LINEAR = "model: {cell: elman, activation: identity}\nobjective: {block: 1, loss_on: target}"


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (FILE, [], []),
        (FILE, ["method.sweeps=3"], ["--set: method.sweeps changes nothing with method.name: admm; read by costate"]),
        (FILE, ["method.name=bptt"], []),  # the file is for another method, and may stay
        (FILE, ["method.name=bptt", "objective.weight=0.1"], ["--set: objective.weight changes nothing with"]),
        (FILE, ["method.name=costate", "method.h_steps=3"], ["--set: method.h_steps changes nothing"]),
        ("method: {name: costate, h_steps: 2}", [], ["a.yaml:1: method.h_steps changes nothing with"]),
        ("method: {name: pm, dual: {lr: 1.0}}", [], ["a.yaml:1: method.dual.lr changes nothing with method.name: pm"]),
        (FILE, ["method.relaxation=2"], ["--set: method.relaxation changes nothing with method.first: forward"]),
        (FILE, ["method.relaxation=2", "method.first=persistent"], []),
        (FILE, ["method.relaxation=2", "batching.order=shuffled"], []),
        ("method: {name: pm, dual: {clip: 1.0, order: before}}", [], ["method.dual.clip", "method.dual.order"]),
        ("method: {name: bptt}\nobjective: {loss_on: target}", [], ["a.yaml:2: objective.loss_on changes nothing"]),
        ("method: {name: costate, starts: tied, edge_free: true}", [],
         ["method.starts changes nothing", "method.edge_free changes nothing"]),
        ("method: {name: bptt, starts: tied}", [], ["a.yaml:1: method.starts changes nothing with method.name: bptt"]),
        ("method: {name: bptt, closing: true}", [], ["method.closing changes nothing with method.name: bptt"]),
        ("method: {name: costate, closing: true}", [], []),
        (f"method: {{name: als, starts: tied, edge_free: true}}\n{LINEAR}", [], []),  # als moves a window's start
        ("method: {name: costate, h_optimizer: {options: {momentum: 0.9}}}", [],
         ["method.h_optimizer.options.momentum changes nothing with method.name: costate"]),
        (FILE, ["method.h_optimizer.options.momentum=0.9", "optimizer.options.eps=0.1"], []),
        (FILE, ["method.name=bptt", "method.dual={lr: 1.0, clip: 1.0}"], ["method.dual.lr", "method.dual.clip"]),
        (f"method: {{name: als}}\n{LINEAR}", ["optimizer.decay={factor: 0.5}", "optimizer.options.betas=[0.5, 0.9]"],
         ["optimizer.decay.factor changes nothing with method.name: als; read by bptt,", "optimizer.options.betas"]),
        ("method: {name: bptt}\nobjective: {penalty: kl, weight_growth: 2.0}", [],
         ["objective.penalty changes nothing", "a.yaml:2: objective.weight_growth changes nothing with"]),
        ("method: {name: bptt}\nobjective: {kl_weight: 1.0}", [], ["read by pm, admm, alm, costate"]),
        ("objective: {kl_weight: 1.0}", [], ["objective.kl_weight changes nothing with objective.penalty: l2"]),
        ("objective: {kl_weight: 1.0, penalty: l2+kl}", [], []),
        ("method: {name: pm}\nobjective: {kl_weight: 1.0, penalty: own:c, allow_penalties_from: [own]}", [],
         ["objective.kl_weight changes nothing with objective.penalty: own:c"]),
        ("method: {name: admm, dual: {keep: false}}", [], ["duals that are zeroed at every window"]),
        ("method: {name: admm, dual: {keep: false, order: before}}", [], []),
        ("preset: paper\nmethod: {name: bptt}", [], []),
        ("preset: paper", ["method.name=costate"], []),
        ("preset: released\nmethod: {name: bptt}", [], []),  # which has tied starts, edge_free and an H-optimiser
        ("preset: released\nmethod: {name: bptt}", ["method.starts=held", "method.edge_free=false"],
         ["--set: method.starts changes nothing", "--set: method.edge_free changes nothing"]),
        (FILE, ["data.source=my.txt"],
         ["--set: data.source changes nothing with data.recipe: python-docs; read by ptb, wikitext, text8, text"]),
        ("data: {train: a, valid: b, test: c, synthetic: {types: 8}}\nmethod: {visit: v:f, allow_visits_from: [v]}", [],
         ["a.yaml:1: data.train changes", "data.valid changes", "data.test changes", "data.synthetic.types changes"]),
        # a visit of one's own reads what it likes, kept duals or not
        ("method: {name: admm, sweeps: 2, dual: {keep: false}, visit: v:f, allow_visits_from: [v]}", [], []),
        ("method: {name: costate, bounded: true}", [], ["method.bounded changes nothing with method.name: costate"]),
        ("method: {name: alm, h_steps: 2}", [], ["method.h_steps changes nothing with method.name: alm; read by pm,"]),
        ("method: {name: admm, keep_costates: true, edge_costate: kept}", [],
         ["method.keep_costates changes nothing", "method.edge_costate changes nothing"]),
        ("data: {recipe: text, source: a}", [], []),
        ("data: {recipe: ptb, source: a}", ["data.recipe=python-docs"], []),
        ("data: {recipe: ptb, column: a}", [], ["a.yaml:1: data.column changes nothing with data.recipe: ptb; read"]),
    ],
)  # fmt: skip
def test_settings_that_change_nothing(tmp_path: Path, file: str, changes: list[str], said: list[str]):
    path = tmp_path / "a.yaml"
    path.write_text(file)
    found = list(unread(load_config(path, changes)))
    assert len(found) == len(said)
    for line, wanted in zip(found, said, strict=True):
        assert line.startswith("note: ")
        assert wanted in line


def test_every_recipe_reads_a_source_or_no_file():
    assert {*RECIPES_READ["data.source"], *NO_FILES} == {*get_args(Data.model_fields["recipe"].annotation)}


def test_what_a_file_of_all_settings_says_is_not_meant(tmp_path: Path):
    """A run's own, or what `config show` prints."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(None, ["method.name=costate", "method.first=persistent"])))
    assert list(unread(load_config(path))) == []
    assert len(list(unread(load_config(path, ["method.h_steps=2"])))) == 1


def test_what_no_point_of_a_sweep_reads_is_said_once(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(FILE)
    changes = ["method.sweeps=3", "method.starts=tied"]
    points = [load_config(path, [*changes, f"method.name={name}"]) for name in ("bptt", "pm", "bptt")]
    assert list(unread_by_all(points)) == [
        "note: --set: method.sweeps changes nothing with method.name: bptt or method.name: pm; read by costate"
    ]
