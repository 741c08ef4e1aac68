"""A report: whole without a network, and its numbers are the runs'."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import small

import tpdist
from tpdist.cli import main
from tpdist.errors import RunError
from tpdist.experiments.figures import CURVES, read_runs, runs_of
from tpdist.experiments.report import reach, report

SCHEMA = pa.schema(
    {"point": pa.string(), "arm": pa.string(), "seed": pa.int64(), "set.optimizer.lr": pa.float64(),
     "set.batching.streams": pa.int64()}
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("report")
    window = {"streams": 2, "blocks": 3}
    for name in ("bptt", "admm"):
        tpdist.train(small(small_corpus, method={"name": name}, batching=window), home / name)
    return [home / "bptt", home / "admm"]


def test_a_report_is_one_file_with_the_runs_figures(runs: list[Path], tmp_path: Path):
    out = tmp_path / "report.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert not re.findall(r"<script|<link|src=|url\(|href=", text)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == len(CURVES) + 2, re.findall(r"<p>.*?</p>", text)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "<td>method.name</td><td>bptt</td><td>admm</td>" in text  # a setting that differs
    for run in runs:
        result = tpdist.evaluate(run, "test")
        assert f"<th>{run.name}</th>" in text
        assert f"<td>{result.perplexity:.2f}</td>" in text


def test_the_reach_of_a_run_that_keeps_no_targets(small_corpus: Path, tmp_path: Path):
    method, batching = {"name": "admm", "first": "persistent"}, {"mode": "batch", "recompute": True, "chunk_tokens": 64}
    tpdist.train(small(small_corpus, method=method, batching=batching), tmp_path / "run")
    assert reach(tmp_path / "run", windows=2, blocks=3)[0] == 1


def test_the_reach_of_a_run_whose_windows_end_with_kept_costates(small_corpus: Path, tmp_path: Path):
    method = {"name": "costate", "first": "persistent", "edge_costate": "kept"}
    tpdist.train(small(small_corpus, method=method, batching={"order": "shuffled"}), tmp_path / "run")
    assert reach(tmp_path / "run", windows=2, blocks=3)[0] == 1


def test_the_gradient_fades_with_the_distance(runs: list[Path]):
    shares = reach(runs[0], windows=2, blocks=4)
    assert len(shares) == 4
    assert shares[0] == 1
    assert all(a > b > 0 for a, b in pairwise(shares))


def test_the_reach_is_followed_through_whole_windows(runs: list[Path]):
    """25 blocks, 8 at a time: the fourth window has one block, and nothing behind it."""
    assert all(share > 0 for share in reach(runs[0], windows=2, blocks=8))


def test_the_reach_is_that_of_the_blocks_own_loss_and_needs_no_penalty_of_the_users(runs: list[Path], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    text = (run / "config.yaml").read_text()
    text = text.replace("loss_on: prediction", "loss_on: target").replace("penalty: l2", "penalty: nowhere:penalty")
    text = text.replace("allow_penalties_from: []", "allow_penalties_from: [nowhere]")
    (run / "config.yaml").write_text(text)
    assert reach(run, windows=2, blocks=4) == reach(runs[1], windows=2, blocks=4)


def test_a_sweep_stands_for_its_points_and_a_model_that_cannot_be_made_for_its_curves(runs: list[Path], tmp_path: Path):
    points = tmp_path / "sweep" / "points"
    points.mkdir(parents=True)
    with pytest.raises(RunError, match="none of the sweep's points is done"):
        report([str(tmp_path / "sweep")], tmp_path / "out.html")
    for name, run in zip(("one", "two"), runs, strict=False):
        shutil.copytree(run, points / name)
    (points / "begun").mkdir()
    config = points / "two" / "config.yaml"
    changed = (
        config.read_text()
        .replace("cell: gru", "cell: nowhere:Cell")
        .replace("allow_cells_from: []", "allow_cells_from: [nowhere]")
    )
    config.write_text(changed)
    report([str(tmp_path / "sweep")], tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert "<h1>one, two</h1>" in page
    rows = [{"point": "two", "arm": "ours", "seed": 0, "set.optimizer.lr": 0.1}, {"point": "one", "arm": "bptt"}]
    rows[1] |= {"seed": 3, "set.batching.streams": 2}
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "sweep" / "results.parquet")
    names = ["ours  lr=0.1  seed 0", "bptt  streams=2  seed 3"]
    assert list(read_runs(runs_of([str(tmp_path / "sweep")]))) == names
    assert list(read_runs([str(points / "one"), str(runs[0])])) == [names[1], "bptt"]
    assert "Not in the reach of the gradient: two: " in page
    assert "No module named" in page


# by file: what a report says, and a command that goes on with the run; None where nothing is the matter
DEEP = {
    "metrics.jsonl": ("has not ended an epoch yet; leave it out", None),
    "result.json": ("result.json: is damaged; leave the run out, or go on with it to write it anew", None),
    "models/best.json": (None, "models/best.json: not what tpdist wrote; evaluate --model last, or train an epoch"),
}


@pytest.mark.parametrize("file", DEEP)
def test_lists_that_nest_too_deep_for_python(
    file: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / file).write_text("[" * 3000 + "]" * 3000)
    commands = (["report", str(run), "--out", str(tmp_path / "out.html")], ["train", "--resume", str(run)])
    for command, said in zip(commands, DEEP[file], strict=True):
        assert main(command) == (2 if said else 0)
        assert (said or "") in capsys.readouterr().err


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no config.yaml, so it is no run directory" in capsys.readouterr().err


def test_where_it_cannot_write_is_said(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(runs[0]), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"tpdist: {tmp_path}: is a directory; name a file in it\n"
