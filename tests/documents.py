"""What the documents show: their code blocks, the files in them, the commands. Helpers of the tests."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"A file\s+`(\w+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [body for kind, body in FENCE.findall(text) if kind == language]


def broken_links(document: str) -> list[str]:
    """Links to a file that is not there, or to a heading that no document has."""
    text = FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    found = []
    for target in links:
        name, _, anchor = target.partition("#")
        there = ROOT / (name or document)
        if not there.exists() or (anchor and anchor not in anchors(there)):
            found.append(target)
    return found


def anchors(file: Path) -> set[str]:
    """The names that GitHub gives a document's headings, in which only letters, digits, spaces, - and _ count."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files(document: str) -> dict[str, str]:
    """The files that the document shows, such as `my_cells.py`, by name."""
    return dict(FILE.findall((ROOT / document).read_text(encoding="utf-8")))


def commands(document: str) -> list[list[str]]:
    """Every `tpdist …` in the document's shell blocks, as arguments; comments and variables before it dropped."""
    found = []
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "tpdist" in words:
                rest = words[words.index("tpdist") + 1 :]
                end = next((i for i, word in enumerate(rest) if word in ("&&", ";", "|", ">")), len(rest))
                found.append(rest[:end])
                words = rest[end:]
    return found
