"""What is kept of sweeps, and that RESULTS.md shows just that."""

import json
from pathlib import Path

import pytest

from tpdist.errors import TpdistError
from tpdist.experiments.markdown import render, table
from tpdist.experiments.results import best_runs, interval, ratio_row, summarise, t95

ROOT = Path(__file__).parents[2]


def row(arm: str, lr: float, seed: int, valid: float | None, **more) -> dict:
    state = "waiting" if valid is None else "done"
    figures = {"valid_perplexity": valid, "test_perplexity": None, "best_epoch": 3, "tokens": 100, "seconds": 2 + seed}
    return {"arm": arm, "seed": seed, "state": state, "set.lr": lr, "error": None, "device": "cpu", **figures, **more}


def test_interval_is_students():
    # scipy.stats.t.interval(0.95, 2, 2, 1 / sqrt(3)): 2 ± 2.4841
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(2.4841, abs=1e-3)
    assert interval([1.0]) is None


def test_the_best_setting_is_among_those_with_the_most_seeds():
    rows = [row("a", 1.0, 0, 9.0), row("a", 1.0, 1, 8.0), row("a", 2.0, 0, 7.0), row("a", 2.0, 1, None)]
    rows += [row("b", 1.0, 0, None, state="failed", error="no such thing")]
    kept = summarise(rows, "a command", {"a": 5.5})
    best, broken = kept["arms"]
    assert (best["setting"], best["seeds"], best["mean"], best["tried"]) == ("lr=1.0", [0, 1], 8.5, 2)
    assert best["interval"] == pytest.approx(12.706 / 2, abs=1e-3)
    assert best["seconds"] == 2.5
    assert best["others"] == [{"setting": "lr=2.0", "seeds": [0], "valid": 7.0}]
    assert best["test"] is None
    assert (broken["tried"], broken["failed"], broken["error"]) == (0, 1, "no such thing")
    lines = table(kept).splitlines()
    columns = ["", "validation", "each run", "paper", "seeds", "best setting", "tried", "tokens", "device", "wall time"]
    assert lines[0] == f"| {' | '.join(columns)} |"
    assert lines[2].startswith("| a | 8.50 ± 6.35 | 9.00, 8.00 | 5.50 | 0, 1 | lr=1.0 | 2 | 100 | cpu |")
    assert lines[3].startswith("| b | no such thing |")


def test_the_setting_that_a_sweep_has_chosen_is_kept_whatever_others_have_reached():
    """It is chosen by the seeds that tune alone."""
    values = [(1.0, 0, 7.0), (1.0, 1, 9.0), (2.0, 0, 7.5), (2.0, 1, 7.5)]
    rows = [row("a", lr, seed, value, chosen=lr == 1.0) for lr, seed, value in values]
    assert summarise(rows, "", {})["arms"][0]["setting"] == "lr=1.0"
    assert best_runs(rows) == {"a": rows[:2]}
    assert best_runs([row | {"chosen": False} for row in rows])["a"][0]["set.lr"] == 2.0


@pytest.mark.parametrize("figure", ["test", "train"])
def test_such_a_figure_needs_every_seed(figure: str):
    rows = [row("a", 1.0, 0, 9.0, **{f"{figure}_perplexity": 10.0}), row("a", 1.0, 1, 8.0)]
    assert summarise(rows, "", {})["arms"][0][figure] is None
    rows[1][f"{figure}_perplexity"] = 12.0
    kept = summarise(rows, "", {})
    assert kept["arms"][0][figure] == 11.0
    assert "| 8.50 ± 6.35 | 11.00 |" in table(kept)


def test_devices_and_versions_are_those_of_the_runs():
    gpu = {"device": "NVIDIA H200", "torch": "2.11.0", "python": "3.12.3"}
    rows = [row("a", 1.0, 0, 9.0, **gpu), row("a", 1.0, 1, 8.0, torch="2.13.0", python="3.12.3")]
    kept = summarise(rows, "", {})
    assert kept["versions"] == {"python": "3.12.3", "torch": "2.11.0, 2.13.0"}
    assert kept["arms"][0]["device"] == "NVIDIA H200, cpu"


def test_ratios_are_over_the_seeds_that_all_have():
    rows = [row("ours", 1.0, seed, value) for seed, value in ((0, 9.0), (1, 8.0), (2, 1.0))]
    rows += [row("bptt", 1.0, seed, value) for seed, value in ((0, 10.0), (1, 8.0))]
    window = [row("bptt-window", 1.0, seed, 5.0) for seed in (0, 1, 2)]
    found = ratio_row(5, summarise(rows, "", {}), summarise(window, "", {}), "a.yaml")
    assert found is not None
    assert found["seeds"] == [0, 1]
    assert (found["ours"], found["bptt"], found["bptt_full_window"]) == (8.5, 9.0, 5.0)
    assert (found["ratio"], found["ratio_full_window"]) == (0.9444, 1.7)  # of the means
    assert found["ratio_interval"] == pytest.approx(12.706 * 0.05, abs=1e-3)  # of 0.9 and 1
    assert "| 5 | 8.50 | 9.00 | 5.00 | 0.944 ± 0.635 |" in table({"rows": [found]})
    some = [row("bptt-window", 1.0, 0, 5.0)]
    part = ratio_row(5, summarise(rows, "", {}), summarise(some, "", {}), "")
    assert part is not None
    assert (part["ratio"], part["bptt_full_window"]) == (0.9444, None)


def test_a_ratio_of_one_cell_of_a_sweep():
    arms = [("ours", 9.0), ("bptt", 10.0), ("bptt-window", 12.0)]
    small = [row(f"{name}-hidden50", 1.0, 0, 2 * value) for name, value in arms]
    kept = summarise([*small, *(row(f"{name}-hidden512", 1.0, 0, value) for name, value in arms)], "", {})
    found = ratio_row(20, kept, kept, "a.yaml", "hidden512")
    assert found is not None
    assert (found["ours"], found["ratio"], found["ratio_full_window"]) == (9.0, 0.9, 0.75)
    assert ratio_row(20, kept, kept, "a.yaml") is None


def test_a_ratio_waits_for_what_is_not_there():
    ours, bptt = row("ours", 1.0, 0, 9.0), row("bptt", 1.0, 0, 10.0)
    assert ratio_row(5, summarise([ours], "", {}), summarise([], "", {}), "") is None
    assert ratio_row(5, summarise([ours], "", {}), summarise([bptt], "", {}), "") is None  # that is another sweep's
    found = ratio_row(5, summarise([ours, bptt], "", {}), summarise([], "", {}), "")
    assert found is not None
    assert (found["ratio"], found["bptt_full_window"], found["ratio_full_window"]) == (0.9, None, None)
    assert "| 0.900 | *not yet measured* | 0 |" in table({"rows": [found]})


@pytest.mark.parametrize("document", ["RESULTS.md", "README.md"])
def test_documents_show_what_is_kept(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "<!-- results: ptb_small_ratio -->" in text
    assert render(text, ROOT / "configs/paper/results") == text


CONTESTS = {  # a row of the first table of RESULTS.md, and what it is of
    "Penn Treebank, 500,000 tokens": "ptb_small_ratio",
    "… by AdamW, 8 epochs": "ptb_small_adamw_ratio",
    "all of Penn Treebank": "ptb_ratio",
    "… eight epochs of AdamW": "ptb_8epochs_ratio",
    "… by Adam, rates that fall after": "ptb_adam_ratio",
    "… by Adam, rates that fall in set": "ptb_annealed_ratio",
    "… GRU 400": "ptb_hidden400_ratio",
    "… GRU 512": "ptb_hidden512_ratio",
    "WikiText-2": "wikitext2_ratio",
    "… by AdamW, with what": "wikitext2_adamw_ratio",
}


@pytest.mark.parametrize("name", CONTESTS)
def test_what_the_results_begin_with_is_what_is_kept(name: str):
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    cells = [cell.strip() for cell in line.split("|")[1:]]
    kept = json.loads((ROOT / f"configs/paper/results/{CONTESTS[name]}.json").read_text(encoding="utf-8"))["rows"]
    shown = dict(zip((5, 10, 20), cells[1:4], strict=True))
    for entry in kept:
        assert f"{entry['ratio']:.3f}" in shown.pop(entry["block"])
    assert not any(shown.values())
    over_window = sorted({f"{entry['ratio_full_window']:.3f}" for entry in kept if entry["ratio_full_window"]})
    ends = over_window if len(over_window) < 2 else (over_window[0], over_window[-1])
    assert cells[4].removesuffix(", **missed**") == " to ".join(ends)


def test_a_marked_table_is_made_anew(tmp_path: Path):
    kept = summarise([row("a", 1.0, 0, 9.0)], "", {})
    (tmp_path / "x.json").write_text(json.dumps(kept))
    made = render("before\n<!-- results: x -->\nold\n<!-- end -->\nafter", tmp_path)
    assert made == f"before\n<!-- results: x -->\n{table(kept)}\n<!-- end -->\nafter"
    with pytest.raises(TpdistError, match=r"y\.json: cannot be read"):
        render("<!-- results: y -->\n<!-- end -->", tmp_path)


def test_intervals_of_many_seeds():
    assert t95(30) == 2.045
    found = [round(t95(count), 3) for count in (31, 41, 61, 1_000_001)]
    assert found == [2.042, 2.021, 2.0, 1.96]  # of tables of Student's t


def test_what_blew_up_at_test_time_is_shown():
    kinds = {"h": {"size": 0.1, "valid": [None, 5.0]}, "theta": {"size": 0.1, "valid": [5.0, 7.0]}}
    shown = table({"test_time": {"a": {"plain": [5.0, 6.0], "seeds": [0, 1], **kinds}}, "steps": 2})
    assert "| a | 5.50 ± 6.35 | *diverged* (of 0.1) | 6.00 ± 12.71 (of 0.1) | 0, 1 |" in shown
