"""The README's commands, run in its order in one directory, as a reader would; on a smaller model and corpus.

Not run here: what installs (`.ci/run` does), what needs an extra (`tests/training/test_trackers.py` does), benchmarks
(`tests/experiments/bench/test_benches.py`), and a cluster, whose commands are tried dry or parsed here and run by
`tests/cluster/test_job_server.py`.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from documents import ROOT, blocks, commands, files

from tpdist.cli import build_parser, main

TEXT = "the value of a b c d e\na b and the value of c\n" * 40
CUT = " data.max_tokens=20000"
SMALL = f"model.hidden=8 run.epochs=1 batching.streams=8{CUT}"
DRY = {"sweep", "submit"}  # minutes, or a cluster
PARSED = {"bench", "jobs", "stop", "reproduce"}
DONE = {"doctor": {0, 1}}  # it finds something to mend on most machines


def way(words: list[str]) -> str:
    """How a command is tried: `run`, `ray` (an embedded one, slow), `dry`, `parse`."""
    if words[0] in PARSED or ("--address" in words and words[0] == "train") or "mlflow" in " ".join(words):
        return "parse"
    if words[0] in DRY:
        return "dry"
    if "--onnx" in words:
        return "parse"
    return "ray" if "cluster.workers=2" in words else "run"


def beneath(words: list[str]) -> str:
    """The small settings; `data prepare` takes the corpus as it is, and a run on its store too."""
    if words[0] == "data":
        return ""
    return SMALL if "configs/ptb_ours.yaml" not in words else SMALL.removesuffix(CUT)


def dry(words: list[str]) -> list[str]:
    where = words.index("--set") if "--set" in words else len(words)
    return words if "--dry-run" in words else [*words[:where], "--dry-run", *words[where:]]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a clone has, the corpora and files that the README speaks of, and small settings beneath all others."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name, code in files("README.md").items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "DIR").mkdir()
    for split in ("train", "valid", "test"):
        for name in (f"DIR/ptb.{split}.txt", f"DIR/wiki.{split}.tokens", f"{split[0]}.txt"):
            (tmp_path / name).write_text(TEXT, encoding="utf-8")
    for name, split in (("a", "t"), ("b", "v"), ("c", "t")):
        shutil.copy(tmp_path / f"{split}.txt", tmp_path / f"{name}.txt")
    (tmp_path / "my.txt").write_text(4 * TEXT, encoding="utf-8")
    (tmp_path / "text8").write_text(TEXT.replace("\n", " "), encoding="ascii")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TPDIST_SET", SMALL)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_commands_run_in_their_order(clone: Path, monkeypatch: pytest.MonkeyPatch):
    tried: dict[str, int] = {}
    for words in commands("README.md"):
        how = way(words)
        tried[how] = tried.get(how, 0) + 1
        if how == "parse":
            build_parser().parse_args(words)
            continue
        monkeypatch.setenv("TPDIST_SET", beneath(words))
        code = main(dry(words) if how in ("dry", "ray") else words)
        assert code in DONE.get(words[0], {0}), words
    assert tried["run"] > 30
    assert (clone / "runs/quickstart/result.json").is_file()
    assert (clone / "report.html").is_file()


@pytest.mark.slow
def test_commands_with_two_workers_run(clone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = [words for words in commands("README.md") if way(words) == "ray"]
    assert found
    for words in found:
        assert main(words) == 0


@pytest.mark.parametrize("block", blocks("README.md", "bash"), ids=lambda text: text[:40])
def test_every_shell_block_is_shell(block: str):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
