"""What is no YAML, no YAML that is allowed here, or cannot be read, each with all that is printed for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tpdist.config import load_config
from tpdist.errors import ConfigError

NO_KEYS = "holds no keys; write what differs from the defaults, such as run: {name: first}"

# (text of the file a.yaml, lines that are printed)
BAD = [
    ("", [f"a.yaml: {NO_KEYS}"]),
    ("# nothing yet\n", [f"a.yaml: {NO_KEYS}"]),
    ("just words", ["a.yaml:1: must be keys with values, such as run: {name: first}, not one value or a list"]),
    ("- a\n- b", ["a.yaml:1: must be keys with values, such as run: {name: first}, not one value or a list"]),
    ("run:\n  seed: 1: 2", ["a.yaml:2: not valid YAML: mapping values are not allowed here"]),
    ("run:\n\tseed: 1", ["a.yaml:2: not valid YAML: a tab where YAML wants spaces; indent with spaces"]),
    ("run: {}\n---\nrun: {}", ["a.yaml:2: not valid YAML: a second document begins; a file holds one configuration"]),
    ("run: {name: \x07}", ["a.yaml:1: a control character, U+0007; remove it"]),
    ('run: {name: "\\UFFFFFFFF"}', ["a.yaml:1: not valid YAML: a number or an escape that is out of range"]),
    (
        "run: !!python/object/apply:os.system ['true']",
        [
            "a.yaml:1: tags are not allowed, got tag:yaml.org,2002:python/object/apply:os.system; "
            "remove it, or quote the text"
        ],
    ),
    (
        "run: &a {seed: 1}\nmodel: *a",
        ["a.yaml:1: anchors (&) and aliases (*) are not allowed; write the value out, or quote the text"],
    ),
    ("sweep: " + "[" * 5000, ["a.yaml:1: nested more than 12 levels deep"]),
]


@pytest.mark.parametrize(("text", "lines"), BAD, ids=[text[:40] for text, _ in BAD])
def test_text(text: str, lines: list[str], said: Callable):
    assert said(text) == lines


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("latin.yaml").write_bytes(b"run:\n  name: caf\xe9\n")
    Path("long.yaml").write_bytes(b"# " + b"x" * 300_000)
    Path("folder").mkdir()
    for path, line in {
        "none.yaml": "none.yaml: no such file",
        "folder": "folder: is a directory; give a YAML file in it",
        "latin.yaml": "latin.yaml:2: not UTF-8 text: byte 0xe9 at offset 16; save the file as UTF-8",
        "long.yaml": "long.yaml: is larger than 256 KiB; a configuration is a short text",
        "a\0b": "a\\x00b: cannot be read: embedded null byte",
        12: "path: must be a file's name, got 12; settings are overrides, as ['run.epochs=1']",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_config(path)  # type: ignore[arg-type]
        assert str(caught.value) == line
