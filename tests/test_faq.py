"""Every message in the README's list is one that the program prints, or Ray."""

import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from documents import ROOT
from small_runs import small

import tpdist
from tpdist.cli import main
from tpdist.config import to_yaml

SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## When it says\n")[1].split("\n## ")[0]
MESSAGES = re.findall(r"^\| `(.*?)` \|", SECTION, re.MULTILINE)
OWN = "model.cell=no_such:Cell"
# what makes it appear, its exit code; a file of Ray's that says it
CAUSES = {
    "exists already and is not overwritten": ("train c.yaml --run-dir done", 2),
    "no such store; run": ("train c.yaml --set data.recipe=ptb data.store=none", 2),
    "give data.store another directory": ("train c.yaml --set data.synthetic.seed=4", 2),
    "torch sees no CUDA device here": ("train c.yaml --set run.device=cuda", 2),
    "training tokens, the corpus has": ("train c.yaml --set batching.streams=60", 2),
    "workers along time share windows of": ("train c.yaml --set cluster.workers=16", 2),
    "and admm is made of duals": ("train c.yaml --set objective.penalty=kl", 2),
    "is not in a package that": (f"train c.yaml --set {OWN}", 2),
    "cannot load": (f"train c.yaml --set {OWN} model.allow_cells_from=[no_such]", 2),
    "holds another model": ("evaluate done --set model.hidden=7", 2),
    "nothing answers at --address": ("submit c.yaml --address http://127.0.0.1:9", 2),
    "No available agent to submit job": ("submit c.yaml --address http://head:8265", 2),
    "Failed to start the dashboard": ("_private/services.py", None),
    "already occupied. You can use": ("_private/services.py", None),
    "Failed to connect to GCS within": ("_raylet.so", None),
    "Try a lower optimizer.lr": ("train c.yaml --run-dir new --set optimizer.lr=1e30", 3),
    "is not installed; pip install": ("train c.yaml --run-dir tracked --set run.track=[wandb]", 2),
}


@pytest.fixture(scope="module")
def workshop(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, its store, a finished run."""
    path = tmp_path_factory.mktemp("workshop")
    shutil.copytree(small_corpus, path / "store")
    (path / "c.yaml").write_text(to_yaml(small("store", run={"epochs": 1})))
    tpdist.train(small(path / "store", run={"epochs": 1}), path / "done")
    return path


def refuse(**_: object) -> None:
    """As Ray's client does, with what its dashboard says."""
    raise RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")


def test_the_list_is_whole():
    assert list(CAUSES) == MESSAGES


@pytest.mark.parametrize("message", MESSAGES)
def test_it_says_so(message: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    command, code = CAUSES[message]
    if code is None:
        found = find_spec("ray")
        assert found is not None
        assert found.origin is not None
        assert message.encode() in (Path(found.origin).parent / command).read_bytes()
        return
    if "//head:" in command:
        monkeypatch.setattr("tpdist.launch.jobs.connect", lambda _: SimpleNamespace(submit_job=refuse, get_address=str))
    monkeypatch.chdir(workshop)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where the extra is missing
    assert main(shlex.split(command)) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("tpdist: ")
    assert said.count("\n") == 1
