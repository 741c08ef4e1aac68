"""`tpdist.launch.packing`: what travels with a job."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tpdist.launch.packing import JobError, pack_list, write_package


def test_runs_stores_and_environments_stay_at_home(project: Path) -> None:
    (project / ".tpdist-77-abcdef").mkdir()
    (project / ".tpdist-77-abcdef" / "token").write_text("of a running Slurm job")
    assert pack_list(project) == [Path("cells/own.py"), Path("small.yaml")]


def test_packages_may_be_called_as_runs_are(project: Path) -> None:
    for name in ("src/runs/code.py", "src/stores/__init__.py"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("")
    assert [path.as_posix() for path in pack_list(project) if path.parts[0] == "src"] == [
        "src/runs/code.py", "src/stores/__init__.py",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_git_ignores_stays_at_home(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    (project / ".gitignore").write_text("*.big\n")
    (project / "data.big").write_text("x")
    (project / "new.txt").write_text("not added yet")
    (project / "gone.txt").write_text("added, then removed")
    subprocess.run(["git", "-C", str(project), "add", "gone.txt"], check=True)
    (project / "gone.txt").unlink()
    names = [path.as_posix() for path in pack_list(project)]
    assert names == [".gitignore", "cells/own.py", "new.txt", "small.yaml"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_where_git_cannot_tell_nothing_travels(project: Path) -> None:
    """What it ignores may be secret."""
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    (project / ".git/index").write_text("torn")
    with pytest.raises(JobError, match=r"project: git cannot say which of its files travel: .*index"):
        pack_list(project)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_file_with_conflicts_travels_once(project: Path) -> None:
    git = ["git", "-C", str(project)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    written = subprocess.run([*git, "hash-object", "-w", "small.yaml"], check=True, capture_output=True, text=True)
    sides = "".join(f"100644 {written.stdout.strip()} {side}\tsmall.yaml\n" for side in (1, 2, 3))
    subprocess.run([*git, "update-index", "--index-info"], check=True, input=sides, text=True)
    assert pack_list(project) == [Path("cells/own.py"), Path("small.yaml")]


def test_too_much_is_refused_with_the_largest_files(project: Path) -> None:
    (project / "corpus.txt").write_bytes(bytes(3 * 2**20))
    with pytest.raises(JobError, match=r"3\.0 MiB would travel .* 2 are allowed; the largest: corpus\.txt 3\.0"):
        pack_list(project, limit_mib=2)


def test_equal_files_give_equal_packages(project: Path, tmp_path: Path) -> None:
    files = pack_list(project)
    write_package(project, files, tmp_path / "a.zip")
    os.utime(project / "small.yaml", (1, 1))
    write_package(project, files, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["cells/own.py", "small.yaml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(project: Path, tmp_path: Path) -> None:
    (project / "secret").touch(mode=0o000)
    with pytest.raises(JobError, match=r"secret: cannot be read: Permission denied; name it in \.gitignore"):
        write_package(project, pack_list(project), tmp_path / "a.zip")


def test_a_file_that_has_gone_is_named(project: Path, tmp_path: Path) -> None:
    files = pack_list(project)
    (project / "small.yaml").unlink()
    with pytest.raises(JobError, match=r"small\.yaml: cannot be read: No such file"):
        write_package(project, files, tmp_path / "a.zip")
