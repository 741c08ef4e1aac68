"""The watch of the fuzz tests sees what it should."""

import itertools
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import guarded
import pytest

FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "open /etc/hostname": lambda _: Path("/etc/hostname").read_text(),
    "os.remove": lambda outside: (outside / "file").unlink(),
    "os.rename": lambda outside: (outside / "file").rename(outside / "in" / "file"),
    "os.mkdir": lambda outside: (outside / "new").mkdir(),
    "open": lambda outside: (outside / "new").write_text("x"),
    "subprocess.Popen": lambda _: subprocess.run(["true"]),
    "os.system": lambda _: os.system("true"),
    "pickle.find_class": lambda _: pickle.loads(pickle.dumps(Path("a"))),
}


@pytest.mark.parametrize("event", FORBIDDEN)
def test_what_is_forbidden_is_seen(event: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(AssertionError, match=event), guarded.guarded(tmp_path / "in"):
        FORBIDDEN[event](tmp_path)
    FORBIDDEN["os.mkdir"](tmp_path / "in")  # outside of the watch


def test_what_is_allowed(tmp_path: Path) -> None:
    with guarded.guarded(tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c").write_text("x")
        (tmp_path / "a").rename(tmp_path / "d")
        shutil.rmtree(tmp_path / "d")
        Path(os.__file__).read_text()


def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "LIMIT_S", 0.1)
    with pytest.raises(AssertionError, match="did not end"), guarded.guarded(tmp_path):
        all(True for _ in itertools.repeat(None))
