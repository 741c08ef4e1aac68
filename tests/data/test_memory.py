"""100 million tokens are prepared in bounded memory: peak under 1 GiB beyond the interpreter."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
GIB = 1 << 30
MB = 1_000_000

SCRIPT = """
    import json, sys, time
    from pathlib import Path
    from tpdist.config import Data
    from tpdist.data import prepare
    def peak():  # of this process alone: getrusage's maximum is inherited from the parent
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    directory = Path(sys.argv[1])
    baseline, begin, marks = peak(), time.perf_counter(), {}
    def progress(p):
        marks.setdefault(f"{p.phase} {p.split}", time.perf_counter() - begin)
    paths = {split: str(directory / f"{split}.txt") for split in ("train", "valid", "test")}
    store = prepare(Data(recipe="text", level=sys.argv[2], **paths), directory / f"store-{sys.argv[2]}", progress)
    print(json.dumps(dict(peak=peak() - baseline, baseline=baseline, tokens=store.manifest.tokens["train"],
        types=store.manifest.types, seconds=time.perf_counter() - begin, marks=marks)))
"""


def write_text(path: Path, size: int, types: int, seed: int, newline: bool) -> None:
    """About `size` bytes of words of Zipfian frequency; one line a hundred words, or one line in all."""
    rng = np.random.default_rng(seed)
    words = np.array([np.base_repr(i + 10, 36).lower() for i in rng.permutation(types)], dtype=object)
    cumulative = np.cumsum(1 / np.arange(1, types + 1))
    end = "\n" if newline else " "
    with open(path, "w") as file:
        while file.tell() < size:
            drawn = words[np.searchsorted(cumulative, rng.random(100_000) * cumulative[-1])]
            for i in range(0, len(drawn), 100):
                file.write(" ".join(drawn[i : i + 100]) + end)


def measure(directory: Path, level: str) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(directory), level],
        check=True,
        capture_output=True,
        text=True,
    )
    result = json.loads(run.stdout)
    print(level, result)
    return result


@pytest.mark.parametrize("level", ["word", "char"])
def test_one_long_line_is_read_in_pieces(tmp_path: Path, level: str):
    """10 MB in one line, 50,000 types: a few pieces are held at once, not the text."""
    write_text(tmp_path / "train.txt", 10 * MB, 50_000, 0, newline=False)
    for split in ("valid", "test"):
        write_text(tmp_path / f"{split}.txt", MB // 10, 50_000, 1, newline=False)
    assert measure(tmp_path, level)["peak"] < 100 * MB


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("types", "newline"), [(500_000, True), (4_000_000, False)])
def test_500_mb_in_less_than_1_gib(tmp_path: Path, types: int, newline: bool):
    write_text(tmp_path / "train.txt", 500 * MB, types, 0, newline)
    for split in ("valid", "test"):
        write_text(tmp_path / f"{split}.txt", 5 * MB, types, 1, newline)
    for level in ("word", "char"):
        result = measure(tmp_path, level)
        assert result["peak"] < GIB
