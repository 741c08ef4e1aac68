"""What of the working directory travels to a cluster with a job, as a zip."""

import os
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from tpdist.config import Experiment, path_keys
from tpdist.data import default_store, missing_source
from tpdist.errors import ConfigError, TpdistError, first_line, key_of
from tpdist.launch.entrypoint import SHARED

# the head keeps the zip in its memory
PACK_LIMIT_MIB = 100.0
OF_A_JOB = ".tpdist-"  # where cluster/slurm.sh keeps a running cluster's token
LEFT_OUT_ABOVE = frozenset({"runs", "stores", ".venv", "venv"})  # below the top these may be packages
LEFT_OUT = frozenset({".git", "__pycache__", "node_modules"})
MADE_THERE = ("data.store", "run.checkpoint_to")  # of the keys that take a path; the others are of files that are read


class JobError(TpdistError):
    """The job could not be handed over, or there is no such job."""


def pack_list(root: Path, say: Callable[[str], None] = print, limit_mib: float = PACK_LIMIT_MIB) -> list[Path]:
    """The files that travel, relative to `root`: those that git does not ignore, without runs, stores and environments.

    say: told of links to directories, which stay. Raises JobError where there are more than `limit_mib`, naming the
    largest, and for a name that a zip cannot hold.
    """
    if not root.is_dir():
        raise JobError(f"{root}: no such directory")
    found = _git_files(root)
    candidates = list(_walk(root)) if found is None else found
    for path in candidates:
        if (root / path).is_symlink() and (root / path).is_dir() and not _stays(path):
            say(f"not sent: {path}, a link to a directory; put a copy in its place if the job needs it")
    files = sorted(
        {  # git names a file with conflicts more than once
            path
            for path in candidates
            if not _stays(path)
            and (root / path).is_file()
            and path.suffix != ".pyc"
            and not any(part.startswith(OF_A_JOB) for part in path.parts)
        }
    )
    for path in files:
        if str(path).encode("utf-8", "replace") != os.fsencode(path):  # names in a zip are UTF-8
            raise JobError(f"{first_line(path)}: its name is not UTF-8; rename it, or name it in .gitignore")
    sizes = {path: (root / path).stat().st_size for path in files}
    total = sum(sizes.values()) / 2**20
    if total > limit_mib:
        largest = ", ".join(f"{path} {sizes[path] / 2**20:.1f}" for path in sorted(files, key=lambda p: -sizes[p])[:3])
        raise JobError(
            f"{root}: {total:.1f} MiB would travel to the cluster, and {limit_mib:g} are allowed; the largest: "
            f"{largest}; name what is not needed in .gitignore, or put data on the cluster and give its path there"
        )
    return files


def paths_there(config: Experiment, root: Path, files: Sequence[Path]) -> dict[str, str]:
    """The paths of a configuration as they are on the cluster, by key, but for those of `files`, which travel.

    Raises ConfigError for a file that does not travel and is said to lie here: nobody would find it.
    """
    found = {}
    for key in path_keys():
        value = str(default_store(config.data)) if key == "data.store" else attrgetter(key)(config)
        if value is None:
            continue
        path = Path(os.path.normpath(value))
        if key in MADE_THERE:
            found[key] = below_shared(value)
        elif path.is_absolute() or value.startswith(SHARED):
            found[key] = value
        elif not any(file == path or path in file.parents for file in files):
            raise ConfigError(
                f"{value}: not among the files of {root} that travel to the cluster; put it there, and write where it "
                f"lies, such as {SHARED}/{path.name}",
                key,
            )
    return found


def overrides_there(overrides: Sequence[str]) -> list[str]:
    """Overrides of a run that goes on, with the paths among them as they are on the cluster; `~` is the home here."""

    def there(override: str) -> str:
        key, value = key_of(override), override.partition("=")[2].strip()
        if key not in path_keys() or value in ("", "null", "~"):
            return override
        value = os.path.expanduser(value)
        return f"{key}={below_shared(value) if key in MADE_THERE else value}"

    return [there(one) for one in overrides]


def needed_there(config: Experiment, there: Mapping[str, str]) -> list[str]:
    """What of `paths_there` a job only reads: files, and the store where nothing says what to make it from."""
    made = ("run.checkpoint_to",) if missing_source(config.data) else MADE_THERE
    return [path for key, path in there.items() if key not in made]


def below_shared(path: str) -> str:
    """Where a relative path lies on the cluster: a job's working directory is each node's own, and goes."""
    return path if path.startswith(("/", SHARED)) or "://" in path else f"{SHARED}/{os.path.normpath(path)}"


def write_package(root: Path, files: Sequence[Path], package: Path) -> None:
    """A zip of `files`; equal files give equal zips, which Ray then sends once. Raises JobError, naming the file."""
    try:
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                _add(archive, root / path, path.as_posix())
    except OSError as error:
        raise JobError(
            f"{package}: cannot be written: {error.strerror}; free some space there, or set TMPDIR to another directory"
        ) from error


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    try:
        body, mode = file.read_bytes(), file.stat().st_mode
    except OSError as error:
        raise JobError(
            f"{file}: cannot be read: {error.strerror}; name it in .gitignore if it is not needed"
        ) from error
    entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (mode & 0o777) << 16
    archive.writestr(entry, body)


def _git_files(root: Path) -> list[Path] | None:
    """What git tracks or would track under `root`, in submodules and other repositories within too; None without git.

    Raises JobError where git cannot tell: what it ignores may be secret, or large.
    """
    try:
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            capture_output=True,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError:
        return None
    except subprocess.CalledProcessError as error:
        if b"not a git repository (or any" in error.stderr:
            return None
        why = first_line(os.fsdecode(error.stderr))
        raise JobError(f"{root}: git cannot say which of its files travel: {why}; mend that first") from error
    files = []
    for path in (Path(name) for name in os.fsdecode(listed.stdout).split("\0") if name):
        # of a repository within git names the directory alone; a submodule that was not fetched is empty
        within = (root / path / ".git").exists() and not (root / path).is_symlink()
        files += [path / one for one in _git_files(root / path) or ()] if within else [path]
    return files


def _stays(path: Path) -> bool:
    """Whether a path of the project is no source code: runs, stores, environments."""
    return path.parts[0] in LEFT_OUT_ABOVE or bool(LEFT_OUT.intersection(path.parts))


def _walk(root: Path) -> Iterator[Path]:
    for directory, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not _stays(Path(directory, name).relative_to(root))]
        # os.walk does not follow links to directories
        for name in [*names, *(one for one in directories if Path(directory, one).is_symlink())]:
            yield Path(directory, name).relative_to(root)
