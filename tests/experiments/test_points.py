"""From a sweep: section to points."""

import hashlib
from pathlib import Path

import pytest

from tpdist.errors import VARIABLE, ConfigError, Setting
from tpdist.experiments.points import expand

TEXT = """
data: {recipe: synthetic}
optimizer: {lr: 0.5}
sweep:
  seeds: [3, 4]
  grid: {optimizer.lr: [0.1, 0.2]}
  arms:
    bptt:
      set: {method.name: bptt}
      grid: {"batching.streams, batching.blocks": [[4, 1], [2, 2]]}
    ours: {set: {method.name: costate, optimizer.options: {eps: 1.0e-8}}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_point_is_the_same_wherever_it_runs(tmp_path: Path):
    file = write(tmp_path, TEXT)
    names = [point.name for point in expand(file)]
    place = ["run.device=cuda", "run.cuda_graph=true", "cluster.gpus_per_worker=0.25", "cluster.cpus_per_worker=2"]
    assert [point.name for point in expand(file, place)] == names
    assert [point.name for point in expand(file, ["model.layers=1"])] == names  # a default, written out
    assert not {point.name for point in expand(file, ["run.tf32=true"])} & set(names)  # which rounds as it computes


@pytest.mark.parametrize(
    "grid", ["run.cuda_graph: [true, false]", "run: [{device: cpu}, {device: auto}]", "cluster.cpus_per_worker: [1, 2]"]
)
def test_points_that_try_places_are_as_many(grid: str, tmp_path: Path):
    text = f"data: {{recipe: synthetic}}\nsweep: {{grid: {{{grid}}}}}\n"
    assert len({point.name for point in expand(write(tmp_path, text))}) == 2


def test_every_setting_of_every_arm_with_every_seed(tmp_path: Path):
    changes = ["batching.streams=6", "run.epochs=7", "sweep.seeds=[3, 4, 5]"]  # one arm tries streams of its own
    points = expand(write(tmp_path, TEXT), changes)
    found = [
        (p.arm, p.config.optimizer.lr, p.config.batching.streams, p.config.batching.blocks, p.config.run.seed)
        for p in points
    ]
    bptt = [("bptt", lr, s, k, seed) for lr in (0.1, 0.2) for s, k in ((4, 1), (2, 2)) for seed in (3, 4, 5)]
    ours = [("ours", lr, 6, 8, seed) for lr in (0.1, 0.2) for seed in (3, 4, 5)]
    assert found == bptt + ours
    assert {p.config.run.epochs for p in points} == {7}
    assert points[-1].config.optimizer.options == {"eps": 1e-8}
    assert not any(p.config.run.test or p.config.sweep for p in points)


def test_the_grid_lies_above_the_cells_and_these_above_what_an_arm_sets(tmp_path: Path):
    arms = "{a: {set: {run.epochs: 5, model.hidden: 5}}, b: {grid: {model.hidden: [8]}}}"
    points = expand(
        write(tmp_path, f"sweep: {{cells: {{run.epochs: [6]}}, grid: {{model.hidden: [7]}}, arms: {arms}}}")
    )
    assert [(p.config.run.epochs, p.config.model.hidden) for p in points] == [(6, 7), (6, 8)]


def test_names_follow_from_the_settings_alone(tmp_path: Path):
    before = [p.name for p in expand(write(tmp_path, TEXT))]
    assert len(set(before)) == len(before)
    assert [p.name for p in expand(write(tmp_path, TEXT.replace("0.5}", "0.7}")))] == before  # the grid lies above it
    assert not set(before) & {p.name for p in expand(tmp_path / "a.yaml", ["run.epochs=7"])}


def test_a_setting_that_a_later_version_adds_changes_no_name(tmp_path: Path):
    """Whatever it is by default: only what is another value counts."""
    (point,) = expand(write(tmp_path, "sweep: {grid: {model.hidden: [3]}}"))
    digest = hashlib.sha256(b'{"model": {"hidden": 3}, "run": {"test": false}}').hexdigest()[:12]
    assert point.name == f"all-seed0-{digest}"


def test_a_random_search_draws_from_the_grid(tmp_path: Path):
    path = write(tmp_path, TEXT + "  random: {count: 1, seed: 2}\n")
    drawn, every = expand(path), expand(path, ["sweep.random=null"])
    assert [p.arm for p in drawn] == ["bptt", "bptt", "ours", "ours"]  # one setting, two seeds
    assert {p.name for p in drawn} < {p.name for p in every}
    assert [p.name for p in expand(path)] == [p.name for p in drawn]
    assert len(expand(path, ["sweep.random={count: 99}"])) == len(every)
    draws = [f"sweep.random={{count: 3, seed: {seed}}}" for seed in range(9)]
    other = [[p.name for p in expand(path, [draw], ["bptt"])] for draw in draws]
    assert len(set(map(tuple, other))) == 4  # three of four settings, in the order of the grid, whatever the seed
    assert all(names == [p.name for p in every if p.name in names] for names in other)


def test_a_random_search_may_draw_from_more_than_memory_holds(tmp_path: Path):
    keys = ["run.log_every", "run.check_every", "run.skip_in_row", "model.hidden", "run.epochs", "run.patience"]
    grid = {key: list(range(1, 1001)) for key in keys}
    points = expand(write(tmp_path, f"sweep: {{random: {{count: 3}}, grid: {grid}}}"))
    assert len({point.setting for point in points}) == 3
    assert all(list(point.tried) == keys for point in points)


def test_a_file_without_arms_has_one(tmp_path: Path):
    points = expand(write(tmp_path, "sweep: {grid: {model.hidden: [3, 4]}}"))
    assert [(p.arm, p.config.model.hidden) for p in points] == [("all", 3), ("all", 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lr=9", "--set: optimizer.lr: the sweep of .*a.yaml gives it a value of its own in every arm"),
        ("run.seed=3", "--set: run.seed: the seeds of a sweep are sweep.seeds; give that"),
        ("run={epochs: 2, seed: 3}", "--set: run.seed: the seeds of a sweep are sweep.seeds; give that"),
        ("run.test=true", "--set: run.test: a sweep tests what it chooses: --test; give that"),
    ],
)
def test_a_change_that_no_point_would_read_is_refused(tmp_path: Path, change: str, message: str):
    with pytest.raises(ConfigError, match=message):
        expand(write(tmp_path, TEXT), [change])


def test_a_change_of_what_every_arm_gives_with_the_section_around_it_is_refused(tmp_path: Path):
    arms = "{a: {set: {method.h_optimizer: {name: adagrad, lr: 0.1}}}, b: {grid: {method.h_optimizer: [{lr: 0.2}]}}}"
    file = write(tmp_path, f"sweep: {{arms: {arms}}}")
    with pytest.raises(ConfigError, match=r"--set: method.h_optimizer.lr: the sweep of .*a.yaml gives it a value of"):
        expand(file, ["method.h_optimizer.lr=0.5"])
    assert expand(file, ["method.h_optimizer.name=sgd"])[1].config.method.h_optimizer.name == "sgd"  # b has it


def test_a_change_that_the_asked_arms_would_not_read_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"batching\.streams"):
        expand(write(tmp_path, TEXT), ["batching.streams=6"], ["bptt"])
    assert expand(write(tmp_path, TEXT), ["batching.streams=6"], ["ours"])


def test_the_environment_is_for_every_command(tmp_path: Path):
    points = expand(write(tmp_path, TEXT), [Setting("optimizer.lr=9", VARIABLE), Setting("run.seed=9", VARIABLE)])
    assert {point.config.optimizer.lr for point in points} == {0.1, 0.2}
    assert {point.seed for point in points} == {3, 4}


def test_settings_that_are_one_configuration_are_one_point(tmp_path: Path):
    arms = "{bptt: {set: {method.name: bptt}}, admm: {set: {method.name: admm}}}"
    grid = "{objective.weight: [0.1, 1.0, 1.0]}"
    points = expand(write(tmp_path, f"sweep: {{arms: {arms}, grid: {grid}, seeds: [0, 1]}}"))
    assert [(point.arm, point.tried["objective.weight"], point.seed) for point in points] == [
        ("bptt", 0.1, 0), ("bptt", 0.1, 1),  # whose λ is 0
        ("admm", 0.1, 0), ("admm", 0.1, 1), ("admm", 1.0, 0), ("admm", 1.0, 1),
    ]  # fmt: skip


def test_letters_of_every_alphabet_can_be_tried(tmp_path: Path):
    points = expand(write(tmp_path, "sweep: {grid: {data.store: [stores/λ, stores/😀]}}"))
    assert [point.config.data.store for point in points] == ["stores/λ", "stores/😀"]


def test_every_pattern_has_to_be_like_an_arm(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no arm is like typo\*; there are bptt, ours"):
        expand(write(tmp_path, TEXT), arms=["ours", "typo*"])


def test_the_names_of_cells_are_those_of_directories(tmp_path: Path):
    text = "sweep: {cells: {data.store: [stores/one, /stores/two], model.hidden: [3]}}"
    points = expand(write(tmp_path, text))
    assert [point.arm for point in points] == ["all-storestores-one-hidden3", "all-store-stores-two-hidden3"]
    with pytest.raises(ConfigError, match="two of its arms would be called 'all-storea-b'"):
        expand(write(tmp_path, "sweep: {cells: {data.store: [a/b, a-b]}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {epochs: 1}", "has no sweep: section; write the values to try, such as"),
        ("sweep: {grid: {model.hidden: [0]}}", "model.hidden: must be at least 1, got 0"),
        ("sweep: {grid: {'model.hidden, model.layers': [3]}}", "must be lists of 2 values, one for each key; got 3"),
        ("sweep: {grid: {model.hiden: [3]}}", "a.yaml:1: sweep.grid.model.hiden: unknown key; did you mean"),
        ("sweep: {grid: {run.seed: [3]}}", "sweep.grid.run.seed: cannot be tried; sweep.seeds holds the seeds"),
        ("sweep: {grid: {run.test: [true]}}", "sweep.grid.run.test: cannot be tried; tpdist sweep --test"),
        ("sweep: {grid: {run: [{seed: 3}, {seed: 4}]}}", "sweep.grid.run: run.seed cannot be tried; sweep.seeds holds"),
        ("sweep: {arms: {a: {set: {run: {test: true}}}}}", "sweep.arms.a.set.run: run.test cannot be tried; tpdist"),
        ("sweep: {arms: {a: {set: null}}}", "sweep.arms.a.set: must be a mapping of keys to values, got null"),
        ("sweep: {grid: {model.hidden: 3}}", "sweep.grid.model.hidden: must be a list of the values to try, got 3"),
        ("sweep: {arms: {a: {sett: {}}}}", "sweep.arms.a.sett: unknown key; an arm has set, grid"),
        ("sweep: {arms: {a: 3}}", "sweep.arms.a: takes keys of its own (set, grid), got 3"),
        ("sweep: {seeds: [0, 1, 0]}", "sweep.seeds: seed 0 is there twice, and would count twice; leave it out once"),
        (
            "sweep: {seeds: [0], tuning_seeds: 2}",
            "sweep.tuning_seeds: must be at most 1, the number of",
        ),
        (
            "sweep: {cells: {model.hidden: [5]}, grid: {model.hidden: [7]}}",
            "sweep.grid: model.hidden is given values in two places; one of them has to go",
        ),
        (
            "sweep: {grid: {'model.hidden, run.epochs': [[5, 1]]}, arms: {a: {grid: {run.epochs: [1, 2]}}}}",
            "sweep.arms.a.grid: run.epochs is given values in two places; one of them has to go",
        ),
        ("cluster: {workers: 2}\nsweep: {}", "cluster.workers: a point of a sweep runs on one worker; write 1"),
        ("cluster: {workers: {min: 1, max: 2}}\nsweep: {}", "cluster.workers: a point of a sweep runs on one worker"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        expand(write(tmp_path, text))
    assert message in str(caught.value)
