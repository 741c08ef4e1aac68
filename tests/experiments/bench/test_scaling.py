"""The scaling benchmark: what its ratios mean, and that it runs."""

import json
from pathlib import Path

import pytest

from tpdist.cli import main
from tpdist.experiments.bench.scaling import Measured, ratios, scaling
from tpdist.training.files import write_json


def row(under: str, workers: int, tokens: int, seconds: float) -> Measured:
    return Measured(under, workers, tokens, seconds, tokens / seconds, 0.0, 0.0)


def test_ratios_are_of_medians() -> None:
    rows = [row("bare", 1, 10, s) for s in (4.0, 5.0, 99.0)] + [row("bare", 1, 20, 10.0), row("bare", 2, 20, 6.25)]
    rows += [row("ray", 1, 10, 5.0), row("ray", 1, 20, 10.0), row("ray", 2, 20, 6.5)]
    assert ratios(rows, 10) == pytest.approx(
        {
            "weak_efficiency_2": 0.8,
            "strong_efficiency_2": 0.8,
            "weak_efficiency_2_ray": 5 / 6.5,
            "strong_efficiency_2_ray": 10 / 13,
            "ray_over_bare": 1.04,
        }
    )


@pytest.mark.parametrize("workers", ["", "0", "1,x", "-2"])
def test_workers_must_be_numbers(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", f"--workers={workers}"]) == 2
    assert capsys.readouterr().err == (
        f"tpdist: --workers: must be whole numbers of at least 1, such as 1,2; got {workers!r}\n"
    )


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    said: list[str] = []
    found = scaling([1, 2], None, said.append, tokens=2_000, rounds=1)
    write_json(tmp_path / "out.json", found)
    written = json.loads((tmp_path / "out.json").read_text())
    assert {"weak_efficiency_2", "strong_efficiency_2", "ray_over_bare"} <= written["ratios"].keys()
    assert all(value > 0 for value in written["ratios"].values())
    assert len(written["rows"]) == 6
    both = [one for one in written["rows"] if one["workers"] == 2]
    assert len({one["bytes_per_update"] for one in both}) == 1  # Ray sends no more than bare processes
    assert any(line.startswith("ray_over_bare") for line in said)
