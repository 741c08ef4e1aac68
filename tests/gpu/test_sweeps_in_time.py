"""Sweeps that end with the time that a GPU is lent for. Runs anywhere: in place of tpdist runs what stands here."""

import tarfile
import time
from pathlib import Path

import pytest
import sweeps


def stand_in(root: Path, code: str) -> None:
    """A `python -m tpdist` that does this."""
    (root / "tpdist").mkdir()
    (root / "tpdist/__init__.py").touch()
    (root / "tpdist/__main__.py").write_text(code)


def test_what_is_done_is_packed_and_what_runs_on_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "TO_STOP_S", 0.0)
    monkeypatch.setattr(sweeps, "PACK_EVERY_S", 0.5)
    point = tmp_path / "runs/reproduce-table2/points/h1-seed0"
    stand_in(
        tmp_path,
        "import pathlib, sys, time\n"
        f"point = pathlib.Path({str(point)!r})\n"
        "point.mkdir(parents=True, exist_ok=True)\n"
        "(point / 'result.json').write_text('{}')\n"
        "(point / 'best.safetensors').write_text('large')\n"
        "print(*sys.argv[1:], flush=True)\n"
        "time.sleep(0 if 'table1' in sys.argv else 60)\n",
    )
    began = time.monotonic()
    assert not sweeps.run_sweeps(["table2 --cells 'h?'", "table1"], "cpu", tmp_path, tmp_path / "out", began + 6)
    assert time.monotonic() - began < 30
    said = capsys.readouterr().out
    assert "table1: exit code 0\n" in said
    assert "table2 --cells 'h?': exit code -9\nreproduce table2 --cells h? --device cpu --budget 5s\n" in said
    with tarfile.open(tmp_path / "out" / sweeps.ARCHIVE) as archive:
        assert archive.getnames() == ["runs/reproduce-table2/points/h1-seed0/result.json"]


def test_no_sweep_is_begun_that_could_not_end(tmp_path: Path) -> None:
    assert not sweeps.run_sweeps(["table2"], "cpu", tmp_path, tmp_path / "out", time.monotonic() + 1)
    assert not (tmp_path / "out").exists()
