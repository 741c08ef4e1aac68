"""`tpdist.launch.packing`: what travels with a job."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tpdist.launch.packing import JobError, pack_list, write_package

NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


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


@NEEDS_GIT
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


@NEEDS_GIT
def test_where_git_cannot_tell_nothing_travels(project: Path) -> None:
    """What it ignores may be secret."""
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    (project / ".git/index").write_text("torn")
    with pytest.raises(JobError, match=r"project: git cannot say which of its files travel: .*index"):
        pack_list(project)


@NEEDS_GIT
def test_a_file_with_conflicts_travels_once(project: Path) -> None:
    git = ["git", "-C", str(project)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    written = subprocess.run([*git, "hash-object", "-w", "small.yaml"], check=True, capture_output=True, text=True)
    sides = "".join(f"100644 {written.stdout.strip()} {side}\tsmall.yaml\n" for side in (1, 2, 3))
    subprocess.run([*git, "update-index", "--index-info"], check=True, input=sides, text=True)
    assert pack_list(project) == [Path("cells/own.py"), Path("small.yaml")]


@NEEDS_GIT
def test_submodules_and_repositories_within_travel_without_what_they_ignore(project: Path, tmp_path: Path) -> None:
    git = ["git", "-c", "protocol.file.allow=always", "-c", "user.name=a", "-c", "user.email=a@b"]

    def repository(root: Path) -> None:
        root.mkdir(exist_ok=True)
        for name, text in {".gitignore": "*.secret\n", "code.py": "", "a.secret": "x"}.items():
            (root / name).write_text(text)
        subprocess.run([*git, "init", "--quiet", str(root)], check=True)
        subprocess.run([*git, "-C", str(root), "add", "."], check=True)
        subprocess.run([*git, "-C", str(root), "commit", "--quiet", "-m", "x"], check=True)

    for name in ("inner", "library"):
        repository(tmp_path / name)
    for below, name in (("library", "inner"), ("project", "library"), ("project", "unfetched")):
        root, source = tmp_path / below, "inner" if name == "inner" else "library"
        subprocess.run([*git, "init", "--quiet", str(root)], check=True)
        add = [*git, "-C", str(root), "submodule", "--quiet", "add", str(tmp_path / source), f"lib/{name}"]
        subprocess.run(add, check=True)
        subprocess.run([*git, "-C", str(root), "commit", "--quiet", "-m", name], check=True)
    subprocess.run([*git, "-C", str(project), "submodule", "--quiet", "update", "--init", "--recursive", "lib/library"])
    subprocess.run([*git, "-C", str(project), "submodule", "--quiet", "deinit", "-f", "lib/unfetched"], check=True)
    repository(project / "cloned")
    (project / "lib/library/new.py").write_text("not added yet")
    assert [path.as_posix() for path in pack_list(project)] == [
        ".gitmodules", "cells/own.py", "cloned/.gitignore", "cloned/code.py", "lib/library/.gitignore",
        "lib/library/.gitmodules", "lib/library/code.py", "lib/library/lib/inner/.gitignore",
        "lib/library/lib/inner/code.py", "lib/library/new.py", "small.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("with_git", [False, pytest.param(True, marks=NEEDS_GIT)])
def test_a_link_to_a_directory_is_told_and_one_to_a_file_travels(project: Path, with_git: bool) -> None:
    if with_git:
        subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    (project / "data").symlink_to(project / "cells")
    (project / "cells/again").symlink_to(project / "cells")
    (project / "other.yaml").symlink_to(project / "small.yaml")
    shutil.rmtree(project / "runs")
    (project / "runs").symlink_to(project / "stores")
    said: list[str] = []
    assert pack_list(project, said.append) == [Path("cells/own.py"), Path("other.yaml"), Path("small.yaml")]
    assert sorted(line.partition(",")[0] for line in said) == ["not sent: cells/again", "not sent: data"]


def test_too_much_is_refused_with_the_largest_files(project: Path) -> None:
    (project / "corpus.txt").write_bytes(bytes(3 * 2**20))
    with pytest.raises(JobError, match=r"3\.0 MiB would travel .* 2 are allowed; the largest: corpus\.txt 3\.0"):
        pack_list(project, limit_mib=2)


def test_a_name_that_is_not_utf_8_is_refused(project: Path) -> None:
    (project / os.fsdecode(b"caf\xe9.txt")).touch()
    with pytest.raises(JobError, match=r"^caf\\udce9\.txt: its name is not UTF-8; rename it, or name it in"):
        pack_list(project)


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_disk_without_space_for_the_package_is_said(project: Path) -> None:
    with pytest.raises(JobError, match=r"^/dev/full: cannot be written: No space left on device; free some"):
        write_package(project, pack_list(project), Path("/dev/full"))


def test_a_file_that_has_gone_is_named(project: Path, tmp_path: Path) -> None:
    files = pack_list(project)
    (project / "small.yaml").unlink()
    with pytest.raises(JobError, match=r"small\.yaml: cannot be read: No such file"):
        write_package(project, files, tmp_path / "a.zip")
