"""The front door: commands from end to end, what they print, and their exit codes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import assert_same_runs, small

import tpdist
from tpdist.cli import main
from tpdist.config import to_yaml


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"tpdist {tpdist.__version__}\n"


def test_completion_without_its_package_is_a_line(monkeypatch, capsys):
    """Whose shell asks for Tab in an environment without the extra."""
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setitem(sys.modules, "argcomplete", None)  # an import then fails
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "tpdist: argcomplete is not installed; pip install 'tpdist[completion]'\n"


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


LIGHT = """
import sys
from tpdist.cli import main
try:
    assert main({0!r}) == 0
except SystemExit as error:
    assert not error.code
assert "torch" not in sys.modules and "ray" not in sys.modules
"""


@pytest.mark.parametrize("arguments", [["--help"], ["config", "show"], ["config", "schema"]])
def test_neither_torch_nor_ray_is_loaded_to_look_at_things(arguments: list[str]):
    done = python("-c", LIGHT.format(arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_config_show_and_schema(tmp_path: Path, capsys):
    (tmp_path / "c.yaml").write_text("run: {name: shown}\n")
    assert main(["config", "show", str(tmp_path / "c.yaml"), "--set", "model.hidden=7", "run.epochs=3"]) == 0
    text = capsys.readouterr().out
    assert "name: shown" in text
    assert "hidden: 7" in text
    (tmp_path / "shown.yaml").write_text(text)
    expected = tpdist.load_config(tmp_path / "c.yaml", ["model.hidden=7", "run.epochs=3"])
    assert tpdist.load_config(tmp_path / "shown.yaml") == expected
    assert main(["config", "schema"]) == 0
    assert '"$schema"' in capsys.readouterr().out


def test_data_prepare_and_verify(tmp_path: Path, capsys):
    for split in ("train", "valid", "test"):
        (tmp_path / split).write_text("a b a c\n" * 5)
    files = [argument for split in ("train", "valid", "test") for argument in (f"--{split}", str(tmp_path / split))]
    store = str(tmp_path / "store")
    assert main(["data", "prepare", "text", *files, "--out", store, "--min-count", "2", "--max-types", "3"]) == 0
    assert capsys.readouterr().out == f"{store}: train 25, valid 25, test 25 tokens, 3 types\n"
    assert main(["data", "verify", store]) == 0
    assert capsys.readouterr().out == f"{store}: whole\n"
    assert main(["data", "prepare", "text", *files, "--out", f"{store}2", "--level", "char"]) == 0
    sizes = ["data.synthetic.types=5", "data.synthetic.states=2", "data.synthetic.tokens=100"]
    assert main(["data", "prepare", "synthetic", "--out", f"{store}3", "--set", *sizes]) == 0
    assert capsys.readouterr().out.endswith("train 100, valid 10, test 10 tokens, 5 types\n")


def test_a_tilde_is_the_home_of_all_paths_of_a_preparation(tmp_path: Path, monkeypatch, capsys):
    """Behind `--out=` no shell fills it in."""
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada/my.txt").write_text("a b a c\n" * 100)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "text", "--source=~/my.txt", "--out=~/store"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/ada/store: train ")
    assert (sorted(os.listdir()), (tmp_path / "ada/store/manifest.json").exists()) == (["ada"], True)


@pytest.fixture
def here(small_corpus: Path, tmp_path: Path, monkeypatch) -> Path:
    """The working directory: `c.yaml` and its store."""
    shutil.copytree(small_corpus, tmp_path / "store")
    (tmp_path / "c.yaml").write_text(to_yaml(small("store", run={"checkpoint_every": 4})))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_train_evaluate_sample(here: Path, capsys):
    assert main(["train", "c.yaml", "--run-dir", "my run", "--set", "run.epochs=1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "run my run"
    assert out[3].startswith("epoch   1  train ppl ")
    assert re.match(r"validation perplexity \d+\.\d\d \(unigram model \d+\.\d\d\), test perplexity \d+\.\d\d", out[4])
    assert main(["evaluate", "my run", "--model", "last", "--by-position"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4
    assert main(["sample", "my run", "--prompt", "w1", "--tokens", "3"]) == 0
    assert len(capsys.readouterr().out.split()) == 4
    assert main(["train", "--resume", "my run", "--set", "run.epochs=2"]) == 0
    assert "resumed at step 9, after epoch 1" in capsys.readouterr().out


def test_the_module_is_the_command(here: Path):
    done = python("-m", "tpdist", "config", "show", "missing.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "tpdist: missing.yaml: no such file\n")


def started(run: str, *more: str) -> subprocess.Popen[str]:
    """A real training process that has written a checkpoint."""
    command = [sys.executable, "-m", "tpdist", "train", "c.yaml", "--run-dir", run, "--set", "run.epochs=400", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not list(Path(run).glob("checkpoints/step-*")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return process


def test_control_c_saves_and_says_how_to_resume(here: Path):
    with started("a run") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    match = re.fullmatch(r"tpdist: stopped at step (\d+); saved. Continue with: tpdist train --resume 'a run'\n", said)
    assert match, said
    epochs = int(match[1]) // 9 + 2
    assert main(["train", "--resume", "a run", "--set", f"run.epochs={epochs}"]) == 0
    tpdist.train(tpdist.load_config("c.yaml", [f"run.epochs={epochs}"]), "whole")
    assert_same_runs(here / "whole", here / "a run")


def test_a_killed_process_goes_on_from_its_last_checkpoint(here: Path):
    with started("run") as process:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    last = max(int(path.name[5:13]) for path in (here / "run/checkpoints").glob("step-*"))
    epochs = last // 9 + 2
    assert main(["train", "--resume", "run", "--set", f"run.epochs={epochs}"]) == 0
    tpdist.train(tpdist.load_config("c.yaml", [f"run.epochs={epochs}"]), "whole")
    assert_same_runs(here / "whole", here / "run")
    assert not list((here / "run").rglob(".*tmp*"))


def test_control_c_outside_of_a_run(here: Path, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tpdist.data.synthetic.MarkovSource.draw", interrupt)
    assert main(["data", "prepare", "synthetic", "--out", "new"]) == 130
    assert capsys.readouterr().err == "tpdist: interrupted\n"
    assert sorted(os.listdir(here)) == ["c.yaml", "store"]


def test_a_reader_that_leaves(here: Path):
    """`tpdist config schema | head -1`."""
    script = f'"{sys.executable}" -m tpdist config schema | head -1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


@pytest.mark.parametrize("command", ["--help", "train --help", "--version"])
def test_help_that_cannot_be_printed(command: str):
    done = shell(f"tpdist {command} >/dev/full", PYTHONUNBUFFERED="")
    full = "tpdist: standard output: cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, full)
    done = shell(f'{{ sleep 1; tpdist {command}; }} | :; exit "${{PIPESTATUS[0]}}"', PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_goes_into_a_file_is_written_though_nobody_reads(here: Path):
    plan = "tpdist plan --tokens 1e6 --types 1000 --gpu h100 --json plan.json"
    done = shell(f'{{ sleep 1; {plan}; }} | :; exit "${{PIPESTATUS[0]}}"', PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert (here / "plan.json").exists()


def test_faults_of_the_users_own_code_show_their_traceback(here: Path, monkeypatch):
    (here / "mine.py").write_text(
        "from tpdist.models import GRU\n"
        "class Mine(GRU):\n"
        "    def forward(self, x, state):\n"
        "        raise FileNotFoundError('a file of mine')\n"
    )
    monkeypatch.syspath_prepend(here)
    own = ["model.cell=mine:Mine", "model.allow_cells_from=[mine]"]
    with pytest.raises(FileNotFoundError, match="a file of mine"):
        main(["train", "c.yaml", "--run-dir", "run", "--set", *own])
    assert not (here / "run").exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_is_printed_as_an_escape(here: Path, encoding: str):
    options = {"env": {**os.environ, "PYTHONIOENCODING": encoding}, "encoding": encoding}
    shown = python("-m", "tpdist", "config", "schema", **options)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert r"\u03b8" in shown.stdout
    done = python("-m", "tpdist", "evaluate", "--help", **options)
    assert (done.returncode, done.stderr) == (0, "")


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script for bash, in which `tpdist` is the command of this environment."""
    script = f'tpdist() {{ "{sys.executable}" -m tpdist "$@"; }}; {script}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_cannot_be_written(here: Path, unbuffered: str):
    full, train = "tpdist: standard output: cannot be written: No space left on device", "train c.yaml --run-dir run"
    for command, way_on in ("config schema", ""), (train, "; there is no checkpoint yet: start the run again"):
        done = shell(f"tpdist {command} >/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == (2, f"{full}{way_on}\n")
    assert not (here / "run").exists()
    done = shell("tpdist config schema >&- && tpdist train c.yaml --run-dir run >&-", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (0, "")
    assert (here / "run/result.json").exists()
    done = shell("tpdist train --resume run --set run.epochs=3 >/dev/full", PYTHONUNBUFFERED=unbuffered)
    way_on = "the checkpoint step-00000018-epoch is whole. Continue with: tpdist train --resume run"
    assert (done.returncode, done.stderr) == (2, f"{full}; {way_on}\n")


@pytest.mark.parametrize("command", ["train none.yaml", "train --bad", "stop job --address auto"])
def test_an_error_that_cannot_be_told_has_its_exit_code(command: str, here: Path):
    assert shell(f"tpdist {command} 2>/dev/full").returncode == 2


@pytest.mark.parametrize("command", ["data prepare synthetic --out x", "submit c.yaml --dry-run"])
def test_a_deleted_directory(here: Path, command: str):
    done = shell(f"mkdir gone; cd gone; rmdir ../gone; tpdist {command}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tpdist: this directory has been deleted; change into another\n"
