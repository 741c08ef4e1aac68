"""All readers against 100,000 cases; `$TPDIST_FUZZ_CASES` for another number."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = int(os.environ.get("TPDIST_FUZZ_CASES", "100000"))
TESTS = Path(__file__).parent
# file, and its tests whose number of cases `$TPDIST_FUZZ_EXAMPLES` sets
READERS = {
    "config/test_config_fuzz.py": ["any_bytes", "any_text", "any_tree", "any_overrides"],
    "data/test_data_fuzz.py": [
        "any_text", "pieces_of_any_size_give_the_same_text", "any_parquet_file", "any_file_of_a_store",
        "any_manifest_and_vocabulary",
    ],
    "training/test_checkpoint_fuzz.py": ["garbage_gets_one_line"],
}  # fmt: skip
EACH = -(-CASES // sum(map(len, READERS.values())))
# of cases that the strategies cannot make valid, a few may be missing
ENOUGH = 0.98
LIMIT_S = 7200


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize(("file", "test"), [(file, test) for file, tests in READERS.items() for test in tests])
def test_many_cases(file: str, test: str) -> None:
    """In a process of its own: a reader in C++ that crashed would take this one along."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"{file}::test_{test}", "--hypothesis-show-statistics",
         f"--timeout={LIMIT_S}"],
        cwd=TESTS, env={**os.environ, "TPDIST_FUZZ_EXAMPLES": str(EACH)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # hypothesis counts where the test is its own; test_checkpoint_fuzz.py builds one
    counts = re.findall(r"- (\d+) passing, 0 failing", done.stdout)
    assert counts or file.endswith("test_checkpoint_fuzz.py"), done.stdout[-3000:]
    for passing in counts:
        assert int(passing) >= ENOUGH * EACH, done.stdout[-3000:]
