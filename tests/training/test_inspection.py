"""`tpdist checkpoint list` and `verify`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import interrupted, small, stop_at

import tpdist
from tpdist.cli import main
from tpdist.training import inspection


@pytest.fixture(scope="module")
def run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped at update 11; the checkpoint of its first epoch is the best."""
    path = tmp_path_factory.mktemp("inspected") / "run"
    interrupted(lambda: tpdist.train(small(small_corpus), path, stop_at(11)))
    return path


def test_list(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["checkpoint", "list", str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    size_at = 6
    about = ["step-00000009-epoch", "step", "9", "after", "epoch", "1", first.split()[size_at], "MiB", "whole", "best"]
    assert first.split() == about
    assert second.split()[3:5] == ["epoch", "2"]
    assert second.split()[-1] == "whole"
    size = sum(path.stat().st_size for path in (run / "checkpoints/step-00000009-epoch").iterdir()) / 2**20
    assert float(first.split()[size_at]) == pytest.approx(size, abs=0.005)


def test_verify(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["checkpoint", "verify", str(run)]) == 0
    capsys.readouterr()
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-00000011/states-0-0.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 2
    heard = capsys.readouterr()
    wrong = f"{file}: its SHA-256 is not that of what was written"
    assert heard.err == f"tpdist: 1 of 2 checkpoints are not whole: {wrong}\n"
    assert heard.out.splitlines()[1] == f"step-00000011        {wrong}"
    assert main(["checkpoint", "list", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("read", ["verify_checkpoint", "read_checkpoint", "counters"])
def test_what_is_pruned_meanwhile_is_not_damaged(
    read: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """By the training, while the first of two is read."""
    shutil.copytree(run, tmp_path / "run")
    original = getattr(inspection, read)

    def prune(*arguments: Any) -> Any:
        shutil.rmtree(tmp_path / "run/checkpoints/step-00000009-epoch", ignore_errors=True)
        return original(*arguments)

    monkeypatch.setattr(inspection, read, prune)
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step-00000011"]


def test_verify_reads_the_models_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/models/best.safetensors").write_bytes(b"{")
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 2
    said = f"tpdist: the checkpoints are whole, and a model is not: {tmp_path}/run/models/best.safetensors: not a whole"
    assert capsys.readouterr().err.startswith(said)


def test_elsewhere(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tpdist.train(small(small_corpus, run={"checkpoint_to": f"file://{tmp_path}/kept", "epochs": 1}), tmp_path / "run")
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 0
    (tmp_path / "kept/run/step-00000009-epoch/state.json").write_text("{}")
    capsys.readouterr()
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 2
    assert f"file://{tmp_path}/kept/run/step-00000009-epoch/state.json: 2 bytes where" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "verify"])
def test_there_is_none(command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "run")
    assert main(["checkpoint", command, str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"tpdist: {tmp_path}/run: has no checkpoint\n"
    assert main(["checkpoint", command, str(tmp_path / "nothing")]) == 2
    assert "does not exist; give the directory that tpdist train printed" in capsys.readouterr().err
