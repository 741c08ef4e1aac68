"""The loader against anything: valid configs come back equal, everything else is a `ConfigError`.

`$TPDIST_FUZZ_EXAMPLES` sets the number of cases of each test that takes anything.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from config_strategies import parts
from guarded import guarded
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tpdist.config import Experiment, load_config, to_yaml
from tpdist.config.keys import all_keys
from tpdist.errors import ConfigError

EXAMPLES = int(os.environ.get("TPDIST_FUZZ_EXAMPLES", "300"))
KEYS = st.sampled_from(all_keys())
SCRAPS = [
    "run:",
    "method",
    ":",
    " ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a",
    "*a",
    "!!int",
    "'",
    '"',
    "#",
    "|",
]
SCRAPS += ["1e-3", "010", "yes", "null", "~", ".nan", "\t", "?", "---", "%YAML 1.1", "<<", "\\x", "preset: paper", "\0"]
SCRAPS += ["method: {h_steps: ", "sweep: {a.b: ", "options", "\u2028", "\ufeff", "99999999999999999999999", "_"]


def load(raw: bytes, overrides: list[str] | None = None) -> Experiment | None:
    """What `raw` says, or None where it is refused, in lines that a terminal can print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_bytes(raw)
        with guarded(Path(folder)):
            try:
                return load_config(path, overrides or [])
            except ConfigError as error:
                lines = str(error).split("\n")
        assert all(line.isprintable() and line.startswith((str(path), "--set: ")) for line in lines), lines
        return None


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(parts(Experiment))
def test_a_valid_config_survives_yaml(data: dict[str, Any]):
    try:
        config = Experiment.model_validate(data)
    except ValidationError:
        reject()  # keys that do not fit each other: test_misfits.py
    text = to_yaml(config)
    again = load(text.encode())
    assert again == config
    assert again is not None
    assert to_yaml(again) == text


@settings(max_examples=EXAMPLES, database=None)
@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"run: {seed: \xe2\x80\xa8}")
def test_any_bytes(raw: bytes):
    load(raw)


@settings(max_examples=EXAMPLES, database=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(SCRAPS), max_size=30).map("".join))
@example('run: "' + "\\U0010FFFF" * 3 + '"')
@example("%YAML 1." + "9" * 5000 + "\n--- {}")
@example("? " * 5000)
@example("{" * 5000)
@example("- " * 5000)
@example("a: " * 5000)
@example("run: {seed: " + "1" * 5000 + "}")
def test_any_text(text: str):
    load(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=EXAMPLES, database=None)
@given(
    st.dictionaries(
        st.sampled_from([key.split(".")[0] for key in all_keys()]) | st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(KEYS.map(lambda key: key.split(".")[-1]) | st.text(max_size=3), inner, max_size=4)
            ),
        ),
        max_size=4,
    )
)
def test_any_tree(data: dict[str, Any]):
    load(json.dumps(data).encode("utf-8", "surrogatepass"))


@settings(max_examples=EXAMPLES, database=None)
@given(st.lists(st.text(max_size=20) | st.tuples(KEYS, st.text(max_size=20)).map("=".join), max_size=4))
@example(["sweep=[[[[[[[[[[[[[[[["])
@example(["method=5", "method.dual.lr=3"])
@example(["preset=released", "preset"])
@example(["sweep.a.b=1", "sweep.c=2"])
@example(["data.store=\ud800"])
def test_any_overrides(overrides: list[str]):
    load(b"method: {dual: 3}", overrides)
    load(b"run: {seed: 1}", overrides)


@settings(max_examples=100)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
@example("~/a")
@example("null")
def test_text_needs_no_quotes_in_an_override(text: str):
    if text.strip() and text.strip()[0] not in "'\"":
        assert load_config(None, [f"data.column={text}"]).data.column == text.strip()


@pytest.mark.parametrize("size", [200_000])
def test_a_large_file_does_not_hang(size: int):
    for scrap in ("a,", "[", "{a: ", "- a\n", "&", "'", "\\", "? a\n: b\n", "x"):
        load((scrap * (size // len(scrap))).encode())
        load(("run: [" + scrap * (size // len(scrap))).encode())
