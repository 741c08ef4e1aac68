"""Fixtures of the configuration's tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tpdist.config import load_config
from tpdist.errors import ConfigError

Said = Callable[..., list[str]]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """The lines that are printed for a.yaml with that text (None: for no file) and overrides, which must be bad."""
    monkeypatch.chdir(tmp_path)

    def lines(text: str | None, overrides: Sequence[str] = ()) -> list[str]:
        if text is not None:
            Path("a.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_config(None if text is None else "a.yaml", overrides)
        return str(caught.value).split("\n")

    return lines
