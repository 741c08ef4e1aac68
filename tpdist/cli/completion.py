"""Tab in the shell, by argcomplete (extra `completion`): commands, options, files, and the keys of `--set`."""

import argparse
from typing import Literal, get_args, get_origin

from tpdist.errors import TpdistError


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end the process; called where the shell asks, which sets `_ARGCOMPLETE`.

    Raises TpdistError where the extra is not installed: the shell has the hook of another environment.
    """
    try:
        from argcomplete import autocomplete  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TpdistError("argcomplete is not installed; pip install 'tpdist[completion]'") from error

    for action in _actions(parser):
        if "--set" in action.option_strings:
            action.completer = settings  # type: ignore[attr-defined]
    autocomplete(parser)


def settings(prefix: str, **_kwargs: object) -> list[str]:
    """What may follow `--set`: `method.h_st` -> `method.h_steps=`; `method.name=` -> each method."""
    from tpdist.config.keys import all_fields, field_at, is_text, takes_value

    key, equals, _ = prefix.partition("=")
    if equals:
        field = field_at(key.split("."))
        kinds = [field.annotation, *get_args(field.annotation)] if field and is_text(field) else []  # beside null, too
        return [f"{key}={choice}" for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    return [f"{key}=" for key, field in all_fields().items() if takes_value(field)]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Every argument of every command."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for command in action.choices.values() for inner in _actions(command)]
    return found
