"""A YAML file and `key=value` overrides to an `Experiment`; every error says where, which key, and what to write.

Three layers, the later above the earlier: the preset, the file, the overrides. Sections are merged key by key;
lists and `options` are replaced whole (`optimizer.options.eps=1e-8` changes one entry).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tpdist.config.complaints import keep_known, sweep_complaints, translate
from tpdist.config.experiment import Experiment, Places
from tpdist.config.overrides import lay_over, read_overrides
from tpdist.config.presets import PRESETS, merge
from tpdist.config.yaml_text import Origin, Problem, Tree, join, read, shown
from tpdist.errors import OVERRIDE, ConfigError

MAX_BYTES = 256 * 1024


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """Load `path` (None: nothing but defaults) and lay `overrides`, such as `method.h_steps=2`, over it.

    Raises `ConfigError` with one line for each thing that is wrong, `file:line: key: what is wrong`, in the order
    of the file and then of the overrides, whose place is `--set`.
    """
    if isinstance(overrides, Mapping):
        raise ConfigError(f"overrides: must be texts such as 'run.epochs=1', got {dict(overrides)!r:.80}")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path: must be a file's name, got {path!r:.80}; settings are overrides, as ['run.epochs=1']")
    tree = Tree(data={}, places={"": Origin(1, None, OVERRIDE)}) if path is None else _read_file(Path(path))
    _drop_unknown(tree)
    written = read_overrides([overrides] if isinstance(overrides, str) else overrides, tree.problems)
    name = written["preset"].data if "preset" in written else tree.data.get("preset")
    preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
    tree.data = merge(preset, tree.data)
    for key, override in written.items():
        lay_over(tree, key, override)
    _drop_unknown(tree)
    for key in _leaves(preset):
        tree.places.setdefault(key, tree.places["preset"])
    return _build(tree)


def locate(config: Experiment, key: str) -> str | None:
    """Where the value of `key` was written, `file:line` or `--set`.

    For a default, the section it would stand in, else the file; for a preset's value the line that names the preset;
    None for a config made in Python.
    """
    at = config._places.at
    return at.get(_nearest(at, key))


def keeps(config: Experiment, key: str, place: str) -> bool:
    """Whether a value at `key` or below it is the one that was written at `place`, with nothing laid over it."""
    at = {name: own for name, own in config._places.at.items() if f"{name}.".startswith(f"{key}.")}
    sections = {name.rpartition(".")[0] for name in at}
    return any(own == place for name, own in at.items() if name not in sections)


def with_place(error: ConfigError, config: Experiment) -> ConfigError:
    """`error` with `file:line:` in front, where its key and its place are known; otherwise as it is."""
    place = locate(config, error.key) if error.key else None
    if place is None:
        return error
    placed = ConfigError(f"{place}: {error}")
    placed.key = error.key
    return placed


def _read_file(path: Path) -> Tree:
    name = shown(str(path), 300)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a directory; give a YAML file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name}: cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{name}: is larger than {MAX_BYTES // 1024} KiB; a configuration is a short text")
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise ConfigError(f"{name}:{line}: not UTF-8 text: {byte}; save the file as UTF-8") from None
    tree = read(text, lambda line: Origin(0, line, name))
    tree.places[""] = Origin(0, None, name)
    if tree.broken:
        raise ConfigError(str(tree.problems[0]))
    if tree.data is None and not tree.problems:
        raise ConfigError(f"{name}: holds no keys; write what differs from the defaults, such as run: {{name: first}}")
    if not isinstance(tree.data, dict):
        raise ConfigError(f"{name}:1: must be keys with values, such as run: {{name: first}}, not one value or a list")
    return tree


def _drop_unknown(tree: Tree) -> None:
    tree.data, complaints = keep_known(tree.data, tree.texts)
    _note(tree, complaints)


def _note(tree: Tree, complaints: list[tuple[str, str]]) -> None:
    noted = {problem.key for problem in tree.problems}
    for key, text in complaints:
        if key not in noted:
            tree.problems.append(Problem(tree.places[_nearest(tree.places, key)], key, text))


def _build(tree: Tree) -> Experiment:
    _note(tree, sweep_complaints(tree.data.get("sweep")))
    config = None
    try:
        config = Experiment.model_validate(tree.data)
    except ValidationError as error:
        # what was left out above stands at its default, so parts may only seem not to fit each other
        _note(tree, translate(error, tree, between_parts=not tree.problems))
    if tree.problems or config is None:
        ordered = sorted(tree.problems, key=lambda problem: (problem.place.rank, problem.place.line or 0))
        error = ConfigError("\n".join(str(problem) for problem in ordered))
        error.key = ordered[0].key or None
        raise error
    config._places = Places({key: str(place) for key, place in tree.places.items()})
    return config


def _nearest(places: Mapping[str, object], key: str) -> str:
    """`key` if its place is known, else the section around it whose place is, else "", the whole."""
    while key and key not in places:
        key = key.rpartition("[" if key.endswith("]") else ".")[0]
    return key


def _leaves(data: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in data.items():
        key = join(prefix, name)
        keys += _leaves(value, key) if isinstance(value, dict) and value else [key]
    return keys
