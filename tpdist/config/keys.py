"""The keys that a configuration may have and what each takes, read off the models."""

import difflib
import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from tpdist.config.experiment import Experiment
from tpdist.config.parts import Part, PathText

TORCH_OPTIONS = ("alpha", "amsgrad", "betas", "dampening", "eps", "momentum", "nesterov", "rho", "weight_decay")


def part_of(field: FieldInfo) -> type[Part] | None:
    """The part that stands at this key, if it is a part and not a value."""
    for option in _options(field.annotation):
        if isinstance(option, type) and issubclass(option, Part):
            return option
    return None


def takes_value(field: FieldInfo) -> bool:
    """Whether something else than a part may stand at this key: `cluster.workers` is a number or has keys."""
    options = [option for option in _options(field.annotation) if option is not type(None)]
    return not all(isinstance(option, type) and issubclass(option, Part) for option in options)


def field_at(path: Sequence[str]) -> FieldInfo | None:
    """The field of a path such as `("method", "h_steps")`; None for an unknown one and where names are the user's."""
    part: type[Part] | None = Experiment
    field = None
    for name in path:
        field = part.model_fields.get(name) if part else None
        if field is None:
            return None
        part = part_of(field)
    return field


def names_of(key: str) -> list[str]:
    """The names of a dotted key, one a level; below `sweep.grid` and its like the rest is one name, a key itself."""
    path = key.split(".")
    for depth in range(1, len(path)):
        field = field_at(path[:depth])
        if field is not None and is_free(field):
            own = depth + 2 if path[:depth] == ["sweep", "arms"] else depth  # an arm's name, its `set` or `grid`
            return [*path[:own], ".".join(path[own:])] if len(path) > own else path
    return path


def is_free(field: FieldInfo) -> bool:
    """Whether the names below this key are the user's own (`options`, `sweep.grid`)."""
    return any(get_origin(option) is dict for option in _options(field.annotation))


def takes_null(field: FieldInfo) -> bool:
    return type(None) in _options(field.annotation)


def is_text(field: FieldInfo) -> bool:
    """Whether the key takes text and nothing else, so that an override needs no quotes."""
    options = [option for option in _options(field.annotation) if option is not type(None)]
    return all(option is str or get_origin(option) is Literal for option in options)


def describe(annotation: Any) -> str:
    """What a key takes, in words: `a whole number or null`."""
    options = _options(annotation)
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    (kind,) = options
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if kind in words:
        return words[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if get_origin(kind) is tuple:
        return "a list [" + ", ".join("..." if a is ... else describe(a).removeprefix("a ") for a in arguments) + "]"
    if isinstance(kind, type) and issubclass(kind, Part):
        return "{" + ", ".join(f"{name}: ..." for name in kind.model_fields) + "}"
    return "a mapping of keys to values"


def why_unknown(path: Sequence[str]) -> str | None:
    """What to say of a full path such as `("method", "h_stpes")`; None where it names a setting or a part."""
    for depth, name in enumerate(path, 1):
        parent = field_at(path[: depth - 1])
        if parent is not None and is_free(parent):
            return None if name else "a name is missing after the dot"
        if field_at(path[:depth]) is None:
            if parent is not None and part_of(parent) is None:
                return f"unknown key; {'.'.join(path[: depth - 1])} has no keys, it is {describe(parent.annotation)}"
            return unknown(path[:depth], path[depth:])
    return None


def unknown(path: Sequence[str], below: Sequence[str] = ()) -> str:
    """What to say of a key that does not exist: the ones that were probably meant, or the ones that there are.

    below: the names that were written behind it.
    """
    path = [name[:100] for name in path]
    if len(path) == 1 and field_at(path[0].split(".")):
        part, _, rest = path[0].partition(".")
        return f"unknown key; in a file write {rest} below {part}:"
    if path[-1] in ("lambda", "lam", "λ"):
        return "unknown key; λ is objective.weight"
    if path[:-1] in (["optimizer"], ["method", "h_optimizer"]) and path[-1] in TORCH_OPTIONS:
        return f"unknown key; options of torch's own optimizers stand below {'.'.join(path[:-1])}.options"
    every = all_keys()
    here = [key for key in every if key.split(".")[:-1] == list(path[:-1])]
    meant = [key for key in every if key.split(".")[-1] == path[-1]]
    meant = meant or difflib.get_close_matches(".".join(path), here, n=1, cutoff=0.75)
    if not meant:
        names = {key.split(".")[-1] for key in every}
        near = difflib.get_close_matches(path[-1], sorted(names), n=1, cutoff=0.75)
        meant = [key for key in every if near and key.split(".")[-1] == near[0]]
    meant = [".".join([key, *below]) if field_at([*key.split("."), *below]) else key for key in meant]
    if meant:
        return f"unknown key; did you mean {' or '.join(meant)}?"
    return f"unknown key; {'.'.join(path[:-1]) or 'a configuration'} has {', '.join(k.split('.')[-1] for k in here)}"


def close_to(word: str, choices: Sequence[str]) -> str:
    """`; did you mean x?`, or nothing where no choice is near."""
    near = difflib.get_close_matches(word[:100].lower(), choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def all_keys() -> tuple[str, ...]:
    """Every dotted key, parts included, in declared order."""
    return tuple(all_fields())


@cache
def all_fields() -> dict[str, FieldInfo]:
    """The field of every dotted key, in the same order."""
    return dict(_fields_of(Experiment, ""))


@cache
def path_keys() -> tuple[str, ...]:
    """The dotted keys that take a path: those whose type is `PathText`."""
    return tuple(key for key, field in all_fields().items() if PathText in get_args(field.annotation))


def _fields_of(part: type[Part], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in part.model_fields.items():
        yield prefix + name, field
        if inner := part_of(field):
            yield from _fields_of(inner, f"{prefix}{name}.")


def _options(annotation: Any) -> list[Any]:
    """The members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]
