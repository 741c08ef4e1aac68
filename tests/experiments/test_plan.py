"""`tpdist plan`: what it says of a configuration, and what it refuses."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from tpdist.cli import main
from tpdist.errors import TpdistError
from tpdist.experiments import calibration
from tpdist.experiments.costs import Link
from tpdist.experiments.plan import link_of


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch_mode = ["--set", "batching.mode=batch", "batching.streams=1", "method.first=persistent"]
    corpus = ["--tokens", "1e9", "--types", "10000"]
    out = str(tmp_path / "plan.json")
    assert (
        main(["plan", "--workers", "1024", "--gpu", "h100", "--link", "400Gb", *corpus, "--json", out, *batch_mode])
        == 0
    )
    said = capsys.readouterr().out
    for words in (
        "1,024 along time",
        "assumed:",
        "memory of a worker",
        "between neighbours",
        "efficiency",
        "10^12 tokens",
    ):
        assert words in said
    found = json.loads(Path(out).read_text())
    assert found["bytes"]["neighbours"] == 7 * 1023 * 200 * 4
    assert 0 < found["efficiency"] <= 1
    assert main(["plan", "--gpu", "abacus", *corpus]) == 2
    assert "a100, h100, h200; got 'abacus'" in capsys.readouterr().err
    assert main(["plan", "--set", f"data.store={tmp_path / 'none'}"]) == 2
    assert "give --tokens and --types" in capsys.readouterr().err


def test_sweeps_are_as_many_as_a_whole_window_takes(tmp_path: Path) -> None:
    """By default one less than its blocks, however many workers share them."""
    out = tmp_path / "plan.json"
    settings = ["method.name=costate", "batching.streams=1", "batching.blocks=8"]
    corpus = ["--tokens", "1e6", "--types", "1000"]
    assert main(["plan", "--workers", "4", "--gpu", "h100", *corpus, "--json", str(out), "--set", *settings]) == 0
    found = json.loads(out.read_text())
    width = found["config"]["model"]["hidden"]
    assert found["bytes"]["neighbours"] == (7 + 1) * 3 * width * 4  # δ and h over every edge, in float32


def test_of_as_many_workers_as_there_is_room_for_it_takes_the_most_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 2 to 40 workers over 4 streams and windows of 8 blocks."""
    corpus = ["--gpu", "h100", "--tokens", "1e5", "--types", "100"]
    assert main(["plan", *corpus, "--set", "cluster.workers={min: 2, max: 40}"]) == 0
    assert "workers: 4 along stream x 8 along time" in capsys.readouterr().out


def test_links() -> None:
    assert link_of("400Gb", 10.0) == Link(1e-5, 5e10)
    assert link_of("100Mb", 0.0) == Link(0.0, 1.25e7)
    for text in ("400", "400GB", "0Gb", "fast"):
        with pytest.raises(TpdistError, match="--link"):
            link_of(text, 10.0)


LINEAR = "model.cell=elman model.activation=identity objective.block=1 objective.loss_on=target"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tokens nan", "argument --tokens: must be a finite number, got nan"),
        ("--tokens 1e400", "argument --tokens: must be a finite number, got 1e400"),
        ("--tokens 0", "--tokens: must be at least 2; got 0"),
        ("--types 1", "--types: must be at least 2 and at most 2,147,483,648; got 1"),
        (f"--types 1{'0' * 400}", f"--types: must be at least 2 and at most 2,147,483,648; got 1{'0' * 400}"),
        ("--set method.visit=a:b method.allow_visits_from=[a]", "method.visit: plan knows the built-in visits alone"),
        (f"--set method.name=als {LINEAR}", "method.name: plan does not know what als costs; write another method"),
        ("--mtbf-hours 0", "--mtbf-hours: must be above 0 and at most 1e9; got 0"),
        ("--mtbf-hours 1e308", "--mtbf-hours: must be above 0 and at most 1e9; got 1e+308"),
        ("--gpu=", "--gpu: must be one of a100, h100, h200; got ''"),
        ("--share 0", "--share: must be above 0 and at most 1; got 0"),
        ("--mtbf-hours nan", "argument --mtbf-hours: must be a finite number, got nan"),
        ("--mtbf-hours inf", "argument --mtbf-hours: must be a finite number, got inf"),
        ("--price -1", "--price: must be 0 or more; got -1"),
        ("--latency-us -1", "--latency-us: must be 0 or more; got -1"),
        ("--json none/x.json", "argument --json: there is no directory none; make it first"),
        ("--gpu h100 --json /dev/full", "tpdist: --json /dev/full: cannot be written: No space left on device"),
        ("--json .", "argument --json: . is a directory; name a file in it"),
    ],
)
def test_what_no_machine_is_is_said(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = ["--tokens", "1e6", "--types", "1000"]
    with suppress(SystemExit):
        assert main(["plan", *corpus, *options.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_forecast_meets_real_runs() -> None:
    said: list[str] = []
    found = calibration.validate(said.append, (1, 2), tokens=2_000)
    assert found["ratios"].keys() == {"error_1", "error_2"}
    for line in said:  # the bytes are exact, whatever the machine is doing
        forecast, counted = line.rsplit("neighbours ", 1)[1].split(" and ")
        assert forecast == counted
