"""tpdist reproduce, with the runs themselves left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

import tpdist.experiments.sweep as sweep_module
from tpdist.cli import main
from tpdist.experiments import precheck
from tpdist.experiments.points import arms_of, load_sweep
from tpdist.experiments.reproduce import figure
from tpdist.launch.tasks import Task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the configurations; a run reaches a perplexity of 100 + its block + its seed."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def run(next_tasks: Callable[[], list[Task]], address, reporter, ended, look, until) -> None:
        while tasks := next_tasks():
            for task in tasks:
                valid = 100.0 + task.config.objective.block + task.config.run.seed
                figures = {"valid_perplexity": valid, "best_epoch": 1, "tokens_per_second": 10.0, "seconds": 2.0}
                task.run.mkdir(parents=True)
                (task.run / "result.json").write_text(json.dumps({**figures, "device": task.config.run.device}))
                ended(task, None)

    monkeypatch.setattr(sweep_module, "run_tasks", run)
    monkeypatch.setattr(sweep_module, "open_or_prepare", lambda data: None)
    monkeypatch.setattr(sweep_module, "is_missing", lambda data: False)
    monkeypatch.setattr(precheck, "is_missing", lambda data: True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cells_of_table_1_stand_beside_the_papers(clone: Path, capsys: pytest.CaptureFixture[str]):
    cells = ["--set", "sweep.random.count=2", "--cells", "ptb-minibatch-h1-block20", "ptb-minibatch-bptt-*"]
    assert main(["reproduce", "table1", *cells, "--device", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ptb")]
    assert [line.split(" | ")[:5] for line in lines] == [
        ["| ptb-minibatch-h1-block20", "121.00 ± 2.48", "120.00, 121.00, 122.00", "127.43", "0, 1, 2"],
        ["| ptb-minibatch-bptt-block5", "106.00 ± 2.48", "105.00, 106.00, 107.00", "135.73", "0, 1, 2"],
        ["| ptb-minibatch-bptt-block10", "111.00 ± 2.48", "110.00, 111.00, 112.00", "129.50", "0, 1, 2"],
        ["| ptb-minibatch-bptt-block20", "121.00 ± 2.48", "120.00, 121.00, 122.00", "128.16", "0, 1, 2"],
    ]
    home = clone / "runs/reproduce-table1"
    assert (home / "table.md").read_text().splitlines()[2:] == lines
    command = json.loads((home / "results.json").read_text())["command"]
    assert command.startswith("tpdist reproduce table1 --cells ptb-minibatch-h1-block20 'ptb-minibatch-bptt-*' --set ")
    table = pq.read_table(home / "results.parquet").to_pylist()  # of all cells, those too that were left out
    assert {row["arm"] for row in table} == set(arms_of(load_sweep("configs/paper/table1.yaml", [])))
    assert {row["arm"] for row in table if row["chosen"]} == {line.split(" | ")[0][2:] for line in lines}


def test_quiet_and_json(clone: Path, capsys: pytest.CaptureFixture[str]):
    cells = ["table1", "--set", "sweep.random.count=2", "--cells", "ptb-minibatch-bptt-block5"]
    assert main(["reproduce", *cells, "--dry-run"]) == 0
    assert "runs/reproduce-table1: 2 points to run, 0 done" in capsys.readouterr().out
    assert main(["reproduce", *cells, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["reproduce", *cells, "--json"]) == 0
    (arm,) = json.loads(capsys.readouterr().out)["arms"]
    assert (arm["arm"], arm["mean"]) == ("ptb-minibatch-bptt-block5", 106.0)
    file = "configs/paper/table1.yaml"
    where = ["--dir", "runs/reproduce-table1"]
    assert main(["sweep", file, *where, "--set", "sweep.random.count=1", "sweep.seeds=[0]", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in rows} == {"done"}
    assert main(["sweep", file, *where, "--set", "sweep.random.count=1", "sweep.seeds=[0]", "--dry-run"]) == 0
    assert "0 points to run" in capsys.readouterr().out


def test_a_figure_is_drawn_beside_its_table(clone: Path):
    few = ["--set", "sweep.random.count=1", "sweep.cells={model.hidden: [50, 100]}"]
    assert main(["reproduce", "figure3", *few, "--device", "cpu"]) == 0
    drawn = ElementTree.parse(clone / "runs/reproduce-figure3/figure.svg").getroot()
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"btprop-h2", "btprop-h5-slower", "bptt", "ours", "hidden", "50", "100"} <= set(words)
    curves = [line.get("points", "").split() for line in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in curves] == [2] * 7
    # a run reaches 100 + 10 + its seed, so the curves are flat, and at the middle of seeds 0, 1, 2
    assert len({point.split(",")[1] for points in curves for point in points}) == 1
    assert "111" in words
    assert drawn.find("{http://www.w3.org/2000/svg}style") is not None  # without it all lines are black


def test_a_kept_figure_has_the_curves_that_were_kept_before(clone: Path):
    (clone / "configs").unlink()
    shutil.copytree(ROOT / "configs", clone / "configs")
    few = ["--set", "sweep.random.count=1", "sweep.cells={model.hidden: [50, 100]}"]
    (clone / "configs/paper/results/figure3.json").unlink()
    for arms in ("bptt-hidden*", "ours-hidden*"):
        assert main(["reproduce", "figure3", "--cells", arms, "--keep", *few]) == 0
    drawn = ElementTree.parse(clone / "configs/paper/results/figure3.svg").getroot()
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_a_figure_of_nothing_is_not_drawn(clone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweep_module, "run_tasks", lambda *_: None)
    assert main(["reproduce", "figure3", "--cells", "bptt-hidden50"]) == 0
    assert not (clone / "runs/reproduce-figure3/figure.svg").exists()


def test_an_arm_with_settings_left_to_try_is_not_kept(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Time is up after three of five settings of BPTT; what was kept of it stays."""
    (clone / "configs").unlink()
    shutil.copytree(ROOT / "configs", clone / "configs")
    file = clone / "configs/paper/results/small_b20.json"
    before = next(arm for arm in json.loads(file.read_text())["arms"] if arm["arm"] == "bptt")
    whole = sweep_module.run_tasks

    def short(next_tasks: Callable[[], list[Task]], *rest) -> None:
        given = [next_tasks()[:3], []]
        whole(lambda: given.pop(0), *rest)

    monkeypatch.setattr(sweep_module, "run_tasks", short)
    assert main(["reproduce", "small/b20", "--keep"]) == 0
    said = capsys.readouterr().out
    assert "bptt: 3 of 5 settings tried, best" in said
    assert "| bptt |" not in said
    after = next(arm for arm in json.loads(file.read_text())["arms"] if arm["arm"] == "bptt")
    assert {name: after[name] for name in before} == before


def test_a_dry_run_refuses_what_the_run_does(clone: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["reproduce", "long-memory", "--dry-run", "--test"]) == 2
    assert "takes no --test" in capsys.readouterr().err


def test_cells_that_a_command_leaves_out_stay_kept(clone: Path):
    (clone / "configs").unlink()
    shutil.copytree(ROOT / "configs", clone / "configs")
    file = clone / "configs/paper/results/ptb_hidden.json"
    other = {"arm": "ours-hidden400", "mean": 1.0, "seeds": [0]}
    gone = {"arm": "no-such", "mean": 2.0, "seeds": [0]}
    file.write_text(json.dumps({"command": "", "versions": {"torch": "0"}, "arms": [other, gone]}))
    assert main(["reproduce", "ptb/hidden", "--cells", "bptt-hidden400", "--keep"]) == 0
    new, old = json.loads(file.read_text())["arms"]
    assert (new["arm"], new["mean"]) == ("bptt-hidden400", 121.0)
    assert old == {**other, "versions": {"torch": "0"}, "command": ""}


def test_an_arm_with_seeds_left_to_run_replaces_none_with_more(clone: Path, capsys: pytest.CaptureFixture[str]):
    (clone / "configs").unlink()
    shutil.copytree(ROOT / "configs", clone / "configs")
    file = clone / "configs/paper/results/ptb_hidden.json"
    whole = {"arm": "bptt-hidden400", "mean": 1.0, "seeds": [0, 1, 2, 3]}
    before = json.dumps({"command": "", "versions": {}, "arms": [whole]})
    file.write_text(before)
    assert main(["reproduce", "ptb/hidden", "--cells", "bptt-hidden400", "--keep"]) == 0
    assert file.read_text() == before
    assert "kept as it was, with more seeds than have ended here: bptt-hidden400" in capsys.readouterr().out
    assert main(["reproduce", "ptb/hidden", "--cells", "*s-hidden400", "bptt-hidden400", "--keep"]) == 0
    kept = {arm["arm"]: arm["mean"] for arm in json.loads(file.read_text())["arms"]}
    assert kept == {"bptt-hidden400": 1.0, "ours-hidden400": 121.0}


def test_ratios_name_the_versions_that_made_their_arms(clone: Path):
    (clone / "configs").unlink()
    shutil.copytree(ROOT / "configs", clone / "configs")
    results = clone / "configs/paper/results"
    before = json.loads((results / "small_b5.json").read_text())
    arms = [{**arm, "versions": {"python": "3.99", "torch": "9.9"}} for arm in before["arms"]]
    arms.append({"arm": "blocks", "versions": {"python": "2.7", "torch": "0.1"}})  # of which no ratio is made
    (results / "small_b5.json").write_text(json.dumps({**before, "arms": arms}))
    assert main(["reproduce", "small/b20", "--cells", "bptt", "--keep"]) == 0
    made_by = json.loads((results / "ptb_small_ratio.json").read_text())["versions"]
    assert made_by["torch"].startswith("9.9, ")
    assert made_by["python"].startswith("3.99, ")


def test_papers_figures_belong_to_cells():
    paper = json.loads((ROOT / "configs/paper/paper.json").read_text())
    for what in ("table1", "table2"):
        assert set(paper[what]) <= set(arms_of(load_sweep(ROOT / f"configs/paper/{what}.yaml", [])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("table9", "reproduce: no configs/paper/table9.yaml; there is figure3, long-memory, ptb, "),
        ("table1 --cells nothing", "no arm is like nothing; there are ptb-batch-h1-block5, "),
        ("table1 --budget soon", "--budget: must be a number with s, m or h, such as 30m or 8h; got 'soon'"),
    ],
)
def test_what_cannot_be_is_said(clone: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str):
    assert main(["reproduce", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_cells_of_two_keys_are_no_curve() -> None:
    cells = ["sweep.cells={model.hidden: [50], model.layers: [1, 2]}"]
    assert figure("figure3", load_sweep(ROOT / "configs/paper/figure3.yaml", cells), []) is None


@pytest.mark.parametrize(("worst", "decades"), [(140.0, False), (3e8, True)])
def test_a_cell_that_diverged_does_not_flatten_the_others(worst: float, decades: bool) -> None:
    arms = [{"arm": f"bptt-hidden{size}", "mean": mean} for size, mean in ((50, 150.0), (100, 120.0), (1024, worst))]
    drawn = figure("figure3", load_sweep(ROOT / "configs/paper/figure3.yaml", []), arms)
    assert drawn is not None
    ticks = [text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert ("1e+06" in ticks) == decades
