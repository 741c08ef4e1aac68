"""Figures of runs: which there are, and that `tpdist plot` writes them."""

import os
import shutil
import xml.etree.ElementTree as ElementTree
from contextlib import ExitStack
from pathlib import Path

import pytest
from small_runs import small

import tpdist
from tpdist.cli import main
from tpdist.experiments.figures import CURVES, figures, save


@pytest.fixture(scope="module")
def run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    window = {"streams": 2, "blocks": 3}
    path = tmp_path_factory.mktemp("figures") / "admm"
    tpdist.train(small(small_corpus, method={"name": "admm"}, batching=window), path)
    return path


def test_plot_writes_every_figure_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new/figures"
    assert main(["plot", str(run), "--out", str(out)]) == 0
    files = sorted(out.iterdir())
    assert [file.stem for file in files] == sorted([*CURVES, "residuals"])
    for file in files:
        ElementTree.fromstring(file.read_text(encoding="utf-8"))
    assert sorted(capsys.readouterr().out.split()) == [str(file) for file in files]


def test_several_runs_share_curves_and_have_a_heat_map_each(run: Path, tmp_path: Path):
    other = tmp_path / "admm"  # a run of the same name
    other.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (other / name).write_bytes((run / name).read_bytes())
    out = tmp_path / "figures"
    assert main(["plot", str(run), str(other), "--out", str(out)]) == 0
    names = {file.stem for file in out.iterdir()}
    assert {name for name in names if not name.startswith("residuals-")} == set(CURVES)
    assert len(names) == len(CURVES) + 2
    assert f">{other}</text>" in (out / "validation.svg").read_text(encoding="utf-8")


def test_speed_and_waiting_by_worker_are_of_the_last_epoch():
    row = {"valid_perplexity": 2.0, "perplexity": 3.0, "primal": 0.0, "dual": 0.0, "tokens_per_second": 10.0}
    speeds = [{"worker_tokens_per_second": [1.0, 9.0]}, {"worker_tokens_per_second": [400.0, 500.0]}]
    rows = [{"epoch": i + 1, "worker_waiting": [0.1, 0.2], **row, **speed} for i, speed in enumerate(speeds)]
    found = figures({"two": rows})
    assert sorted(found) == ["speed", "training", "validation", "workers-speed", "workers-waiting"]
    labels = [text.text for text in ElementTree.fromstring(found["workers-speed"]).iter() if text.text]
    assert {"400", "500"} <= set(labels)
    assert {"0", "1"} <= set(labels)  # ranks


def test_what_cannot_be_plotted_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def complaint(*arguments: str) -> str:
        assert main(["plot", *arguments]) == 2
        return capsys.readouterr().err

    assert "holds no config.yaml, so it is no run directory" in complaint(str(tmp_path))
    assert "is given twice" in complaint(str(run), str(run))
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    assert f"--out {taken}: is a file; give a directory" in complaint(str(run), "--out", str(taken))
    assert f"{taken}/in/validation.svg: cannot be written: Not a directory" in complaint(
        str(run), "--out", f"{taken}/in"
    )
    assert taken.read_text(encoding="utf-8") == "mine"
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert "has not ended an epoch yet; leave it out" in complaint(str(begun))
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (begun / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "epoch": 1}\n', encoding="utf-8")
    assert "has not ended an epoch yet; leave it out" in complaint(str(begun))
    (begun / "metrics.jsonl").write_text(rows + '{"kind": "ep', encoding="utf-8")  # killed as it wrote
    assert main(["plot", str(begun), "--out", str(tmp_path / "drawn")]) == 0


def test_a_residual_that_blew_up_stays_empty():
    rows = [{"epoch": 1, "residuals": [0.5, None]}, {"epoch": 2, "residuals": [0.25, 0.5]}]
    assert figures({"a": rows})["residuals"].count("<rect") >= 3


@pytest.mark.parametrize(
    ("line", "said"), [('{"kind": "epoch", "step": 9, "epoch": 2}', "an epoch's row is without valid_loss")]
)
def test_a_damaged_row_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str):
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    for command in ("plot", "report"):
        assert main([command, str(tmp_path / "run"), "--out", str(tmp_path / command)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{bad", "{}"])
def test_a_damaged_result_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/result.json").write_text(text)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "a.html")]) == 2
    assert "result.json: is damaged; leave the run out" in capsys.readouterr().err


def test_what_is_no_regular_file_stays_what_it_is(tmp_path: Path):
    """As root a rename would make a file of a device."""
    fifo, link, dangling = (tmp_path / name for name in ("fifo", "link", "dangling"))
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    save(fifo, "drawn")
    assert os.read(reader, 100) == b"drawn"
    os.close(reader)
    assert fifo.is_fifo()
    (tmp_path / "kept").write_text("old")
    link.symlink_to("kept")
    dangling.symlink_to("new/file")
    for one, target in ((link, "kept"), (dangling, "new/file")):
        save(one, "drawn")
        assert one.is_symlink()
        assert (tmp_path / target).read_text() == "drawn"


@pytest.mark.parametrize(("out", "said"), [("", "argument --out: must not be empty"), (".", ".: is a directory")])
def test_a_report_is_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, said: str
):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        if not out:
            stack.enter_context(pytest.raises(SystemExit))
        assert main(["report", str(run), "--out", out]) == 2
    assert capsys.readouterr().err.startswith(f"tpdist: {said}; ")
    assert list(tmp_path.iterdir()) == []
