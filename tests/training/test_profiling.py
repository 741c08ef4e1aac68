"""`--profile`: a timeline of a few updates, and the same numbers as without it."""

import json
from pathlib import Path

from small_runs import rows, small

from tpdist.launch.local import train


def test_a_timeline_of_the_updates_after_the_first(tmp_path: Path) -> None:
    for name, updates in (("plain", None), ("traced", 2)):
        train(small(tmp_path / "store", run={"profile": updates}), tmp_path / name)
    assert not (tmp_path / "plain/profile").exists()
    (file,) = (tmp_path / "traced/profile").iterdir()
    assert file.name == "step-00000004-worker-0-0.json"
    names = [event.get("name") for event in json.loads(file.read_text())["traceEvents"]]
    assert {"ProfilerStep#3", "ProfilerStep#4"} <= set(names)
    assert "ProfilerStep#5" not in names
    assert rows(tmp_path / "plain") == rows(tmp_path / "traced")


def test_a_run_that_ends_before_it_still_ends(tmp_path: Path) -> None:
    result = train(small(tmp_path / "store", run={"profile": 1_000, "epochs": 1}), tmp_path / "run")
    assert result.steps == 9
