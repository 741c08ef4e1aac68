"""Scripts in place of `tpdist train`, for jobs."""

import sys
from pathlib import Path


def stand_in(directory: Path, body: str) -> str:
    """A script in place of `tpdist train`; it finds its arguments in sys.argv and the run directory in `run`."""
    file = directory / "stand_in.py"
    head = "import json, pathlib, signal, sys, time\n"
    head += "option = '--run-dir' if '--run-dir' in sys.argv else '--resume'\n"
    head += "run = pathlib.Path(sys.argv[sys.argv.index(option) + 1])\n"
    file.write_text(head + body)
    return f"{sys.executable} {file}"


RECORD = """
run.mkdir(parents=True, exist_ok=True)
(run / "result.json").write_text(json.dumps({"run": str(run), "args": sys.argv[1:]}, indent=1))
"""
