"""`--set key=value`: reading the values and laying them over what the file says."""

from collections.abc import Iterator, Sequence
from typing import Any

from tpdist.config.keys import field_at, is_text, names_of, part_of, takes_null, takes_value, why_unknown
from tpdist.config.parts import Part
from tpdist.config.presets import merge
from tpdist.config.yaml_text import Origin, Problem, Tree, control_character, read, shown
from tpdist.errors import place_of


def read_overrides(texts: Sequence[str], problems: list[Problem]) -> dict[str, Tree]:
    """By key the values that can be read, in the order of `texts`; what is wrong with the others goes to `problems`."""
    values: dict[str, Tree] = {}
    for rank, text in enumerate(texts, 1):
        place = Origin(rank, None, place_of(text))
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            what = "has no '='" if not equals else "has no key"
            problems.append(Problem(place, "", f"'{shown(text)}' {what}; write key=value, such as method.h_steps=2"))
            continue
        path = [shown(name) for name in key.split(".")]
        key = ".".join(path)
        wrong = why_unknown(path) or ("given twice; keep one" if key in values else None)
        if wrong:
            problems.append(Problem(place, key, wrong))
            continue
        tree = _read_value(path, value, place)
        problems += tree.problems
        if not tree.problems:
            values[key] = tree
    return values


def _read_value(path: list[str], value: str, place: Origin) -> Tree:
    key = ".".join(path)
    field = field_at(path)
    if field is None or not is_text(field) or value.startswith(("'", '"')):
        tree = read(value, lambda line: place, key)
        tree.places[key] = place
        for section, inner in _empty_sections(path, tree.data) if not tree.problems else ():
            names = ", ".join(inner.model_fields)
            tree.problems.append(Problem(place, section, f"takes keys of its own ({names}), got nothing"))
        return tree
    # text needs no quotes here: the shell has taken them off already, and run.name=001 can mean only one thing
    wrong = control_character(value)
    problems = [Problem(place, key, wrong)] if wrong else []
    data = None if takes_null(field) and value in ("null", "~") else value
    return Tree(data=data, places={key: place}, problems=problems)


def _empty_sections(path: Sequence[str], data: Any) -> Iterator[tuple[str, type[Part]]]:
    """Sections at `path` or below it that stand for nothing: they would drop what the file says of them."""
    field = field_at(path)
    inner = part_of(field) if field is not None else None
    if field is None or inner is None:
        return
    if data is None and not takes_null(field) and not takes_value(field):
        yield ".".join(path), inner
    for name, value in data.items() if isinstance(data, dict) else ():
        yield from _empty_sections([*path, name], value)


def lay_over(tree: Tree, key: str, override: Tree) -> None:
    """Put the override of `key` into `tree`: merged where it is a section, in place of the old value elsewhere."""
    *sections, last = names_of(key)
    data: Any = tree.data
    for depth, name in enumerate(sections, 1):
        if not isinstance(data.get(name, {}), dict | type(None)):
            field = field_at(sections[:depth])
            if field is None or part_of(field) is None:
                return  # the file has a wrong value there, and will be told so
            data[name] = {}  # a value or a section: the override wants the section
            tree.places[".".join(sections[:depth])] = override.places[key]
        data[name] = dict(data.get(name) or {})
        data = data[name]
    value, old = override.data, data.get(last)
    field = field_at([*sections, last])
    if field is not None and part_of(field) and isinstance(value, dict) and isinstance(old, dict):
        value = merge(old, value)
    else:  # what was below it is gone
        below = (f"{key}.", f"{key}[")
        tree.places = {name: place for name, place in tree.places.items() if not name.startswith(below)}
    data[last] = value
    tree.places |= override.places
    for name in override.places:
        tree.texts.pop(name, None)
    tree.texts |= override.texts
