"""YAML text as plain data, with the line of every key.

A narrower language than PyYAML's `safe_load`: what one reader of YAML takes for a boolean or an octal number and
another for text is refused rather than guessed, and so is what a configuration never needs (tags, anchors, aliases,
deep nesting). In one thing it is wider: `1e-3` is a number, as in YAML 1.2.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from tpdist.errors import one_line

MAX_DEPTH = 12
LARGEST_INT = 2**63 - 1

YES_NO = "tag:tpdist,yes-no"
LEADING_ZERO = "tag:tpdist,leading-zero"
NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))

# (tag, the plain scalars that have it, their first characters); the first that fits decides
RESOLVERS = [
    (NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (YES_NO, re.compile(r"^(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$"), list("yYnNoO")),
    (LEADING_ZERO, re.compile(r"^[-+]?0[0-9_]+$"), list("-+0")),
    (INT, re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")),
    (
        FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
]


@dataclass(frozen=True)
class Origin:
    """Where something was written. `rank` puts the file (0) before the overrides, and these in their order."""

    rank: int
    line: int | None
    source: str

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; its `str` is the line that the user reads."""

    place: Origin
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.text) if part)


@dataclass
class Tree:
    """Plain data read from a text, and for every dotted key its place and the text of its scalar."""

    data: Any = None
    places: dict[str, Origin] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: bool = False


def shown(text: str, limit: int = 60) -> str:
    """`text` fit for one line of a terminal: no control characters, and not endless."""
    return one_line(text if len(text) <= limit else text[: limit - 3] + "...")


def join(key: str, name: str) -> str:
    """The dotted key of `name` inside `key`."""
    return f"{key}.{name}" if key else name


def read(text: str, place_of: Callable[[int], Origin], key: str = "") -> Tree:
    """Read `text`, the value of `key` ("" for a whole file); `place_of` turns a line, from 1, into its place.

    A wrong value is noted in the tree's problems and left out of its data, so that the rest can be looked at too;
    a text that is not YAML, or not the YAML allowed here, makes the whole tree `broken`.
    """
    tree = Tree()
    try:
        node = _compose(text)
    except _RefusedError as refused:
        return Tree(problems=[Problem(place_of(refused.line), key, str(refused))], broken=True)
    if node is not None:
        data = _Builder(tree, place_of).build(node, key, place_of(node.start_mark.line + 1))
        tree.data = None if data is _BAD else data
    return tree


def control_character(text: str) -> str | None:
    """What to say of a text with a line break, another control character or half a surrogate pair in it."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        return f"holds a line break or another control character: '{shown(text)}'"
    return None


class _RefusedError(Exception):
    def __init__(self, text: str, line: int):
        super().__init__(text)
        self.line = line


class _Loader(yaml.SafeLoader):
    """SafeLoader up to the node tree, without tags, anchors and aliases, and with a bound on the depth."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the name and the place are PyYAML's)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _RefusedError(
                "anchors (&) and aliases (*) are not allowed; write the value out, or quote the text", line
            )
        if getattr(event, "tag", None) is not None:
            raise _RefusedError(f"tags are not allowed, got {shown(event.tag)}; remove it, or quote the text", line)
        if self.depth == MAX_DEPTH:
            raise _RefusedError(f"nested more than {MAX_DEPTH} levels deep", line)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _RefusedError(f"a control character, U+{error.character:04X}; remove it", line) from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = shown(" ".join((error.problem or error.context or "").split()), 120)
        if "'\\t'" in problem:
            problem = "a tab where YAML wants spaces; indent with spaces"
        elif "<stream end>" in problem:
            problem += "; close what is open, and quote a value with spaces"
        elif "single document" in (error.context or ""):
            problem = "a second document begins; a file holds one configuration"
        raise _RefusedError(f"not valid YAML: {problem}", mark.line + 1 if mark else 1) from None
    except (ValueError, OverflowError):
        # PyYAML lets int() and chr() raise for escapes such as "\UFFFFFFFF" and for endless version numbers
        raise _RefusedError("not valid YAML: a number or an escape that is out of range", loader.line + 1) from None
    finally:
        loader.dispose()


_BAD = object()


class _Builder:
    def __init__(self, tree: Tree, place_of: Callable[[int], Origin]):
        self.tree, self.place_of = tree, place_of

    def build(self, node: yaml.Node, key: str, place: Origin) -> Any:
        """The plain data of `node`, or `_BAD` where a problem was noted."""
        self.tree.places[key] = place
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            items = [
                self.build(item, f"{key}[{i}]", self.place_of(item.start_mark.line + 1))
                for i, item in enumerate(node.value)
            ]
            return _BAD if any(item is _BAD for item in items) else items
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, key, place)

    def mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            place, name = self.place_of(line), name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or not name:
                self.problem(place, key, "a key must be a plain word")
                continue
            inner = join(key, shown(name))
            if wrong := control_character(name):
                self.problem(place, inner, wrong)
                continue
            if name in lines:
                both = f"on lines {lines[name]} and {line}" if place.line else "twice"
                self.problem(place, inner, f"written {both}; keep one")
                continue
            lines[name] = line
            value = self.build(value_node, inner, place)
            if value is not _BAD:
                data[name] = value
        return data

    def scalar(self, node: yaml.ScalarNode, key: str, place: Origin) -> Any:
        text, tag = node.value, node.tag
        if node.style is None:
            self.tree.texts[key] = text
        if tag == NULL:
            return None
        if tag == BOOL:
            return text.lower() == "true"
        if tag == YES_NO:
            says = "true" if text.lower() in ("yes", "on") else "false"
            return self.problem(place, key, f"{text} may be a boolean or text; write {says}, or '{text}' in quotes")
        if tag == LEADING_ZERO:
            number = text.lstrip("-+").replace("_", "").lstrip("0") or "0"
            said = f"{shown(text)} begins with 0; write {shown(number)}, or '{shown(text)}' in quotes if it is text"
            return self.problem(place, key, said)
        if tag == INT:
            digits = text.replace("_", "")
            if len(digits) > 20 or abs(int(digits)) > LARGEST_INT:
                return self.problem(place, key, f"{shown(text)} is too large; the largest is {LARGEST_INT}")
            return int(digits)
        if tag == FLOAT:
            value = float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
            return value if math.isfinite(value) else self.problem(place, key, f"must be finite, got {shown(text)}")
        wrong = control_character(text)
        return self.problem(place, key, wrong) if wrong else text

    def problem(self, place: Origin, key: str, text: str) -> Any:
        self.tree.problems.append(Problem(place, key, text))
        return _BAD
