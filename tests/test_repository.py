"""The repository as a whole: its rooms and what they import, its top level, the size of its files, its wheel."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tpdist"

# ARCHITECTURE.md, "Rooms": each room may import those below it, never one above or beside it
EVERYWHERE = {"config", "errors"}
BELOW = {
    "cli": {"experiments", "launch", "training", "data"},
    "experiments": {"launch", "training", "parallel", "tprop", "models", "data", "testing"},
    "launch": {"training", "parallel", "tprop", "models", "data"},
    "training": {"parallel", "tprop", "models", "data"},
    "parallel": set(),
    "tprop": {"models"},
    "models": set(),
    "data": set(),
    "config": set(),
    "errors": set(),
    "testing": set(),
    "__init__": {"launch", "config"},
    "__main__": {"cli"},
}
# a library that only some rooms know
KEPT_TO = {
    "ray": {"launch"},
    "mlflow": {"training"},
    "wandb": {"training"},
    "pyarrow": {"data", "experiments", "training"},
    "torch": {"launch", "training", "parallel", "tprop", "models", "experiments", "testing"},
    "numpy": {"training", "parallel", "experiments", "data"},
    "yaml": {"config"},
}
TOP_LEVEL = {
    "pyproject.toml", "README.md", "tpdist", "cluster", "configs", "tests", "docker",
    "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", "RESULTS.md",
}  # fmt: skip
LONGEST = 250


def tracked() -> list[Path]:
    """The files that git knows, relative to the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else path.stem


def imported(path: Path) -> Iterator[str]:
    """Dotted names of every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_downwards(path: Path):
    room = room_of(path)
    assert room in BELOW, f"{room} is a new room: give it a place in ARCHITECTURE.md and here"
    for name in imported(path):
        library, *inner = name.split(".")
        if library == "tpdist":
            # `tpdist.__version__` and the like are names of the package itself, not of a room
            target = inner[0] if inner else "__init__"
            assert target in {room, "__version__"} | EVERYWHERE | BELOW[room], f"{room} must not import {name}"
        elif library in KEPT_TO:
            assert room in KEPT_TO[library], f"only {sorted(KEPT_TO[library])} may import {library}; {room} does"


def test_config_imports_nothing_but_errors():
    names = {name.split(".")[1] for path in modules() if room_of(path) == "config" for name in imported(path)
             if name.startswith("tpdist.")}  # fmt: skip
    assert names <= EVERYWHERE


def test_no_file_is_longer_than_a_person_reads():
    paths = [path for path in tracked() if path.suffix == ".py"]
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_the_top_level_is_the_agreed_one():
    names = {path.parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL
    assert {"pyproject.toml", "README.md", "LICENSE", "ARCHITECTURE.md", "CONTRIBUTING.md"} <= names


def test_no_path_of_one_machine_is_written_down():
    own = re.compile(r"(?<![\w.$}>-])/(?:home|root|Users|work|tmp|var/tmp)/\w")
    found = []
    for path in tracked():
        if {"docker", "cluster"} & set(path.parts):  # paths inside images and on clusters, and their tests
            continue
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}:{i}: {line.strip()}" for i, line in enumerate(text.splitlines(), 1) if own.search(line)]
    assert found == []


def test_every_file_of_the_package_has_its_row_in_architecture_md():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE)
    files = [
        str(path.relative_to("tpdist")) for path in tracked() if path.parts[0] == "tpdist" and path.suffix == ".py"
    ]
    where = "ARCHITECTURE.md, 'Where is what'"
    assert [name for name in files if name not in rows] == [], f"no row in {where}"
    assert [name for name in rows if not (PACKAGE / name).is_file()] == [], f"no such file, but a row in {where}"


def test_the_wheel_is_the_package_with_its_type_marker(tmp_path: Path):
    pytest.importorskip("hatchling", reason="needs pip install '.[test]'")
    build = "import sys; from hatchling.builders.wheel import WheelBuilder; list(WheelBuilder('.').build(directory=sys.argv[1], versions=['standard']))"  # noqa: E501
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "tpdist/py.typed" in names
    assert {f"tpdist/{path.relative_to(PACKAGE)}" for path in modules()} <= set(names)
    assert not [name for name in names if not name.startswith(("tpdist/", "tpdist-"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by name, each folder on its own path."""
    names = [path.name for path in tracked() if path.parts[0] == "tests" and path.suffix == ".py"]
    assert sorted({name for name in names if names.count(name) > 1} - {"conftest.py"}) == []
