"""What commands have in common: dry runs, --quiet, --json, and which setting wins over which."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from small_runs import small

from tpdist.cli import main
from tpdist.config import to_yaml
from tpdist.errors import Setting

Printed = pytest.CaptureFixture[str]
GRID = "{grid: {optimizer.lr: [0.01, 0.02]}, seeds: [0, 1], tuning_seeds: 1}"


@pytest.fixture
def here(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `c.yaml`, a sweep, their store, three texts."""
    shutil.copytree(small_corpus, tmp_path / "store")
    (tmp_path / "c.yaml").write_text(to_yaml(small("store", run={"epochs": 1})))
    (tmp_path / "s.yaml").write_text(to_yaml(small("store")).replace("sweep: null", f"sweep: {GRID}"))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b a c\n" * 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TPDIST_SET", raising=False)
    return tmp_path


TEXT = "data prepare text --train train.txt --valid valid.txt --test test.txt --out new"
MANY = "cluster.workers.min=2 cluster.workers.max=60"
DRY = [
    ("train c.yaml --run-dir new", ["run new", "199 tokens, 12 types; gru 6", "9 updates in 1 epoch\n"]),
    ("train s.yaml", ["of the file's sweep: section nothing is run here; tpdist sweep runs it"]),
    ("train c.yaml --set cluster.workers=2", ["run runs/NAME-TIME", "2 workers: 2 along stream x 1 along time"]),
    # two streams of 25 blocks: no more than the corpus can fill
    (f"train c.yaml --set {MANY} batching.blocks=60 batching.mode=batch", ["2 to 25 workers as they come and go"]),
    (f"train c.yaml --set {MANY} batching.blocks=25", ["2 to 50 workers as they come and go"]),
    ("train c.yaml --set data.store=none", ["the store is missing and would be prepared first:", "would write none"]),
    (TEXT, ["train: train.txt, 40 bytes", "would write new"]),
    ("data prepare synthetic --out new", ["train: 200,000 tokens, drawn from a source of 64 types"]),
    ("sweep s.yaml", ["all  lr=0.01  seed 0", "runs/run-sweep: 2 points to run, 0 done, 0 failed", "1 more seed"]),
    ("submit c.yaml", ["would send ", " to http://127.0.0.1:8265", "would call there: ", "tpdist train c.yaml"]),
]


@pytest.mark.parametrize(("command", "says"), DRY, ids=lambda value: str(value)[:40])
def test_a_dry_run_says_and_does_nothing(command: str, says: list[str], here: Path, capsys: Printed):
    before = sorted(here.rglob("*"))
    words = command.split()
    where = words.index("--set") if "--set" in words else len(words)
    assert main([*words[:where], "--dry-run", *words[where:]]) == 0
    printed = capsys.readouterr().out
    for one in says:
        assert one in printed
    assert sorted(here.rglob("*")) == before


def test_a_dry_run_of_reproduce(here: Path, capsys: Printed):
    shutil.copytree(Path(__file__).parents[1] / "configs", here / "configs")
    changes = ["data.recipe=synthetic", "data.store=new", "data.max_tokens=null", "data.max_types=null"]
    assert main(["reproduce", "small/ablation", "--budget", "1h", "--dry-run", "--set", *changes]) == 0
    said = capsys.readouterr().out
    assert "points to run, 0 done" in said
    assert "a store is missing and would be prepared first" in said
    assert main(["reproduce", "table4", "--budget", "1h", "--dry-run"]) == 2
    assert "no such store; run `tpdist data prepare" in capsys.readouterr().err
    assert not (here / "runs").exists()
    assert main(["reproduce", "table4", "--budget", "soon", "--dry-run"]) == 2


def test_a_dry_run_says_what_the_run_then_says(here: Path, capsys: Printed):
    assert main(["train", "c.yaml", "--run-dir", "run", "--dry-run"]) == 0
    foreseen = capsys.readouterr().out.splitlines()
    assert main(["train", "c.yaml", "--run-dir", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == foreseen[:3]
    assert main(["train", "--resume", "run", "--dry-run", "--set", "run.epochs=3"]) == 0
    said = capsys.readouterr().out
    assert "would go on from step-00000009-epoch" in said
    assert "would change from there on: run.epochs 1 -> 3" in said
    assert "18 more of 27 updates in 3 epochs\n" in said
    assert main(["train", "--resume", "run", "--dry-run"]) == 0
    assert "nothing is left to train; for more: --set run.epochs=2, or more\n" in capsys.readouterr().out


def test_a_dry_run_finds_what_is_wrong(here: Path, capsys: Printed):
    (here / "taken").mkdir()
    for command in (
        "train c.yaml --run-dir taken",
        "train c.yaml --set batching.streams=60",
        TEXT.replace("new", "store"),
    ):
        assert main([*command.split()[:2], "--dry-run", *command.split()[2:]]) == 2
        assert capsys.readouterr().err.startswith("tpdist: ")


OWN_CELL = ["model.cell=nowhere:Cell", "model.allow_cells_from=[nowhere]"]
OWN_VISIT = ["method.visit=nowhere:visit", "method.allow_visits_from=[nowhere]"]


@pytest.mark.parametrize("own", [OWN_CELL, OWN_VISIT], ids=["cell", "visit"])
@pytest.mark.parametrize("store", ["store", "none"])
def test_a_dry_run_finds_code_that_cannot_be_loaded(own: list[str], store: str, here: Path, capsys: Printed):
    changes, why = [*own, f"data.store={store}"], own[0].replace("=", ": cannot load '")
    for dry in (["--dry-run"], []):  # no store is made first, which might take long
        assert main(["train", "c.yaml", *dry, "--run-dir", "new", "--set", *changes]) == 2
        assert why in capsys.readouterr().err
    assert main(["sweep", "s.yaml", "--dry-run", "--set", *changes]) == 0
    assert f"would fail: --set: {why}" in capsys.readouterr().out
    assert main(["sweep", "s.yaml", "--set", *changes]) == 2
    assert why in capsys.readouterr().err
    assert not (here / "runs" / "run-sweep" / "failed").exists()
    assert not any((here / name).exists() for name in ("new", "none"))


QUIET = [
    ("train c.yaml --run-dir run", ["valid_perplexity", "run", "steps"]),
    (TEXT, ["store", "tokens", "types", "unigram"]),
    ("evaluate done", ["split", "perplexity", "loss", "tokens"]),
]


@pytest.mark.parametrize(("command", "keys"), QUIET, ids=lambda value: str(value)[:20])
def test_quiet_and_json(command: str, keys: list[str], here: Path, capsys: Printed):
    if command.startswith("evaluate"):
        assert main(["train", "c.yaml", "--run-dir", "done", "--quiet"]) == 0
        assert capsys.readouterr().out == ""
    assert main([*command.split(), "--json"]) == 0
    assert set(keys) <= set(json.loads(capsys.readouterr().out))


def test_quiet_and_json_of_preparing(here: Path, capsys: Printed):
    assert main([*TEXT.split(), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*TEXT.split(), "--quiet"]) == 2, "errors are not quiet"
    assert capsys.readouterr().err.startswith("tpdist: new: exists")


def shown(capsys: Printed, key: str, *arguments: str) -> str:
    """The resolved value of a key."""
    assert main(["config", "show", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return next(line.split(": ")[1] for line in lines if line.strip().startswith(f"{key}: "))


def test_flag_over_environment_over_file_over_preset_over_default(here: Path, capsys: Printed, monkeypatch):
    (here / "p.yaml").write_text("preset: released\n")
    (here / "f.yaml").write_text("preset: released\nmethod: {theta_steps: 2}\n")
    assert shown(capsys, "theta_steps") == "1"
    assert shown(capsys, "theta_steps", "p.yaml") == "5"
    assert shown(capsys, "theta_steps", "f.yaml") == "2"
    monkeypatch.setenv("TPDIST_SET", "method.theta_steps=3 'run.name=in words'")
    assert main(["config", "show", "f.yaml"]) == 2
    assert "TPDIST_SET: run.name: " in capsys.readouterr().err, "an error says where the value was written"
    monkeypatch.setenv("TPDIST_SET", "method.theta_steps=3")
    assert shown(capsys, "theta_steps", "f.yaml") == "3"
    assert shown(capsys, "theta_steps", "f.yaml", "--set", "method.theta_steps=4") == "4"
    monkeypatch.setenv("TPDIST_SET", "method.theta_steps='3")
    assert main(["config", "show", "f.yaml"]) == 2
    assert capsys.readouterr().err.startswith("tpdist: TPDIST_SET: No closing quotation; write key=value")


def test_options_with_a_name_of_their_own_lie_above_the_environment(here: Path, capsys: Printed, monkeypatch):
    monkeypatch.setenv("TPDIST_SET", "data.max_types=2")
    assert main([*TEXT.split(), "--max-types", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["types"] == 3


def test_a_setting_keeps_its_place_on_its_way_to_a_worker():
    sent = pickle.loads(pickle.dumps(Setting("run.profile=5", "--profile")))
    assert (sent, sent.written_in) == ("run.profile=5", "--profile")
