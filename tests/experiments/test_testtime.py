"""Learning at test time, over the runs of a sweep."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import small

import tpdist
from tpdist.errors import TpdistError
from tpdist.experiments import angles, testtime
from tpdist.experiments.markdown import table


def test_every_arm_tries_as_many_sizes_on_its_first_seed(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = small(small_corpus, method={"name": "bptt"}, batching={"streams": 2, "blocks": 4}, run={"epochs": 1})
    runs = [tmp_path / "points" / f"bptt-seed{seed}" for seed in range(2)]
    rows = []
    for seed, run in enumerate(runs):
        result = tpdist.train(config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})}), run)
        row = {"point": run.name, "arm": "bptt", "seed": seed, "state": "done", "set.optimizer.lr": 0.003}
        rows.append(row | {"valid_perplexity": result.valid_perplexity})
    rows.append({**rows[0], "point": "worse", "set.optimizer.lr": 1.0, "valid_perplexity": 1e3})
    rows.append({**rows[0], "arm": "ours", "state": "waiting"})
    with pytest.raises(TpdistError, match=r"results.parquet: is not there"):
        testtime.at_test_time(tmp_path, [], [])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    monkeypatch.setattr(testtime, "SIZES", {"h": (1e-6, 1e6), "theta": (1e-6, 1e6)})

    found = testtime.at_test_time(tmp_path, ["bptt"], ["run.device=cpu"])
    assert found["command"].endswith(f".testtime {tmp_path} --arms bptt --set run.device=cpu")
    (entry,) = found["test_time"].values()
    assert entry["seeds"] == [0, 1]
    assert entry["plain"] == [round(tpdist.evaluate(run).perplexity, 3) for run in runs]
    for kind in ("h", "theta"):  # the small size changes next to nothing; the large one is tried and left
        assert entry[kind]["size"] == 1e-6
        assert entry[kind]["valid"] == pytest.approx(entry["plain"], rel=1e-3)
        assert entry[kind]["tried"]["1000000.0"] > entry[kind]["tried"]["1e-06"]
    assert "| bptt | " in table(found)
    with pytest.raises(TpdistError, match="no run of 'ours' has ended; choose from bptt"):
        testtime.at_test_time(tmp_path, ["ours"], [])


@pytest.mark.parametrize("program", [testtime, angles])
def test_settings_are_all_taken_however_they_are_given(program: ModuleType, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    def looked_at(sweep: object, arms: object, overrides: list[str]) -> dict[str, Any]:
        seen.append(overrides)
        return {"test_time": {}}

    monkeypatch.setattr(testtime, "at_test_time", looked_at)
    monkeypatch.setattr(angles, "chosen_runs", lambda sweep, arms: {"bptt": [{"point": "a"}]})
    monkeypatch.setattr(angles, "angles", lambda run, overrides, *_: seen.append(overrides) or {})
    monkeypatch.setattr(
        "sys.argv", ["program", "SWEEP", "--set", "run.seed=1", "data.level=word", "--set", "run.tf32=true"]
    )
    program.main()
    assert seen == [["run.seed=1", "data.level=word", "run.tf32=true"]]
