"""From data that does not fit to lines that say so in plain words, each with its dotted key."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tpdist.config.experiment import Experiment, SeveralConfigErrors
from tpdist.config.keys import (
    close_to,
    describe,
    field_at,
    is_free,
    part_of,
    takes_null,
    takes_value,
    unknown,
    why_unknown,
)
from tpdist.config.parts import NAME_PATTERN, Part
from tpdist.config.running import UNION_TAG
from tpdist.config.yaml_text import LARGEST_INT, Tree, join, shown
from tpdist.errors import ConfigError

NAME_WORDS = "letters, digits, '.', '_' and '-', the first a letter or a digit"
NO_SPACE = "a space is missing behind the colon"
NOT_TRIED = {
    "run.seed": "cannot be tried; sweep.seeds holds the seeds",
    "run.test": "cannot be tried; tpdist sweep --test evaluates what was chosen",
}


def keep_known(data: dict[str, Any], texts: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """`data` without the keys that do not exist, and what to say of each of those.

    An empty section (`method:` with nothing below it) counts as one without keys.
    """
    complaints: list[tuple[str, str]] = []
    return _keep(Experiment, data, (), texts, complaints), complaints


def _keep(
    part: type[Part], data: dict[str, Any], path: tuple[str, ...], texts: Mapping[str, str], said: list[tuple[str, str]]
) -> dict[str, Any]:
    kept = {}
    for name, value in data.items():
        here = (*path, name)
        key = ".".join(map(shown, here))
        field = part.model_fields.get(name)
        if field is None:
            said.append((key, NO_SPACE if _glued(name, value) else unknown([shown(n) for n in here])))
            continue
        inner = part_of(field)
        section = inner is not None and not takes_value(field)
        if value is None and (section or is_free(field)) and not takes_null(field):
            value = {}
        if inner and isinstance(value, dict):
            before = len(said)
            value = _keep(inner, value, here, texts, said)
            if takes_value(field) and len(said) > before:
                continue  # what is left of it would be taken for the whole
        elif inner and section and value is not None:
            names = ", ".join(inner.model_fields)
            said.append((key, f"takes keys of its own ({names}), got {_got(value, texts.get(key))}"))
            continue
        kept[name] = value
    return kept


def _glued(name: str, value: Any) -> bool:
    """Whether a key and its value were written as one word, which YAML takes for a key: {min:2}."""
    return value is None and ":" in name


def sweep_complaints(sweep: Any) -> list[tuple[str, str]]:
    """The names in `sweep.grid`, `sweep.cells` and the arms are keys of the configuration, so they have to exist."""

    def inner(value: Any, name: str) -> dict[str, Any]:
        found = value.get(name) if isinstance(value, dict) else None
        return found if isinstance(found, dict) else {}

    said: list[tuple[str, str]] = []
    places = [(f"sweep.{name}", inner(sweep, name)) for name in ("grid", "cells")]
    for arm, parts in inner(sweep, "arms").items():
        place = join("sweep.arms", shown(arm))
        if not re.match(NAME_PATTERN, arm):
            said.append((place, f"an arm's name must be made of {NAME_WORDS}"))
        if not isinstance(parts, dict):
            said.append((place, f"takes keys of its own (set, grid), got {_got(parts, None)}"))
            continue
        strange = [name for name in parts if name not in ("set", "grid")]
        said += [(join(place, shown(name)), "unknown key; an arm has set, grid") for name in strange]
        places += [(join(place, name), inner(parts, name)) for name in ("set", "grid")]
    for place, values in places:
        for written, tried in values.items():
            key = join(place, shown(written))
            if place.endswith(("grid", "cells")) and not (isinstance(tried, list) and tried):
                said.append((key, f"must be a list of the values to try, got {_got(tried, None)}"))
            for name in map(str.strip, written.split(",")):
                wrong = why_unknown([shown(step) for step in name.split(".")])
                if name.split(".")[0] == "sweep":
                    wrong = NOT_TRIED["run.seed"]
                wrong = NOT_TRIED.get(name, wrong)
                said += [(key, wrong)] if wrong else []
            if written.strip() == "run":  # `run: {seed: 3}`, where one value is tried or several
                sections = [one for one in (tried if isinstance(tried, list) else [tried]) if isinstance(one, dict)]
                inside = NOT_TRIED.keys() & {f"run.{name}" for section in sections for name in section}
                said += [(key, f"{name} {NOT_TRIED[name]}") for name in sorted(inside)]
    return said


def translate(error: ValidationError, tree: Tree, between_parts: bool) -> list[tuple[str, str]]:
    """Pydantic's errors as (dotted key, what is wrong), one for each key.

    `between_parts`: also where two parts do not fit each other.
    """
    complaints: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        raised = detail.get("ctx", {}).get("error")
        if isinstance(raised, ConfigError):
            several = raised.errors if isinstance(raised, SeveralConfigErrors) else [raised]
            for one in several if between_parts else []:
                complaints.setdefault(one.key or "", str(one).removeprefix(f"{one.key}: "))
            continue
        path, whole, value = _written_path(detail["loc"], tree.data)
        key = _dotted(path)
        if detail["type"] == "missing" and isinstance(value, dict) and value:
            # said where the other key stands, which may be an override of a section that the file is without
            complaints.setdefault(join(key, shown(next(iter(value)))), f"{detail['loc'][-1]} is missing; write both")
            continue
        # a union is tried member by member: each failure says half of the truth, the field's type all of it
        kind = detail["type"] if whole else "union"
        complaints.setdefault(key, _words(kind, detail.get("ctx", {}), path, value, tree.texts.get(key)))
    return list(complaints.items())


def _written_path(loc: tuple[int | str, ...], data: Any) -> tuple[list[int | str], bool, Any]:
    """The part of pydantic's `loc` that the user wrote, whether it is all of `loc`, and the value there."""
    path: list[int | str] = []
    for step in loc:
        if isinstance(step, str) and step.startswith(UNION_TAG):
            continue
        if not _holds(data, step):
            return path, False, data
        data = data[step]
        path.append(step)
    return path, True, data


def _holds(data: Any, step: int | str) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int) and step < len(data)


def _dotted(path: list[int | str]) -> str:
    key = ""
    for step in path:
        key = f"{key}[{step}]" if isinstance(step, int) else join(key, shown(step))
    return key


def _words(kind: str, ctx: Mapping[str, Any], path: list[int | str], value: Any, text: str | None) -> str:
    got = _got(value, text)
    names = [step for step in path if isinstance(step, str)]
    field = field_at(names)
    null = " or null" if field is not None and takes_null(field) and names == path else ""
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "above"),
        "less_than_equal": ("le", "at most"),
        "less_than": ("lt", "below"),
    }
    if kind in bounds:
        name, words = bounds[kind]
        return f"must be {words} {ctx[name]:g}, got {got}"
    if kind == "string_pattern_mismatch" and ctx["pattern"] == NAME_PATTERN:
        return f"must be made of {NAME_WORDS}; got {got}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "literal_error" and field is not None:
        choices = describe(field.annotation).removesuffix(" or null")
        choices = choices.removeprefix("a list [").removesuffix(", ...]").removeprefix("one of ")
        hint = close_to(value, choices.split(", ")) if isinstance(value, str) else ""
        return f"must be one of {choices}{null}; got {got}{hint}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_INT:
        return f"must be a whole number{null}, got {got}; write {int(value)}"
    simple = {
        "int_type": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "bool_type": "true or false",
    }
    if kind in simple:
        return f"must be {simple[kind]}{null}, got {got}{_mend(kind, value, text)}"
    if field is None:  # an entry of `options`
        field = field_at(names[:-1])
        got += f"; {NO_SPACE}" if _glued(names[-1], value) else ""
        option = "a number, true or false, or a list of two numbers"
        return f"must be {option if field else 'a mapping of keys to values'}, got {got}"
    return f"must be {describe(field.annotation)}, got {got}"


def _mend(kind: str, value: Any, text: str | None) -> str:
    if kind == "string_type" and text is not None and not isinstance(value, dict | list) and value is not None:
        return f"; put it in quotes: '{shown(text)}'"
    if kind in ("int_type", "float_type") and isinstance(value, str) and text is None:
        try:
            float(value)
        except ValueError:
            return ""
        return "; write it without quotes"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("true", "false"):
        return "; write it without quotes"
    return ""


def _got(value: Any, text: str | None) -> str:
    """A value as its writer would know it again."""
    if value is None:
        return text or "nothing"
    if isinstance(value, str):
        return f"'{shown(value)}'"
    if isinstance(value, dict):
        return "a mapping of keys to values" if value else "{}"
    if isinstance(value, list | tuple):
        return shown("[" + ", ".join(_got(item, None) for item in value[:20]) + "]")
    if text is not None:
        return shown(text)
    return str(value).lower() if isinstance(value, bool) else str(value)
