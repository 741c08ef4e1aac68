"""The README's picture is what the script draws."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tpdist.experiments import picture

ROOT = Path(__file__).parents[2]
FILE = "tpdist/experiments/blocks.svg"


def test_the_committed_picture_is_what_the_script_draws():
    text = (ROOT / FILE).read_text(encoding="utf-8")
    again = "python -m tpdist.experiments.picture > tpdist/experiments/blocks.svg"
    assert text == picture.picture(), f"draw it again: {again}"
    assert again in (picture.__doc__ or "")


def test_the_readme_shows_it_and_it_does_without_a_network():
    assert f"]({FILE})" in (ROOT / "README.md").read_text(encoding="utf-8")
    text = (ROOT / FILE).read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert text.count("http") == 1  # the name of the format
    assert "prefers-color-scheme: dark" in text
    assert "<script" not in text
