"""What a person sees: a moving line on a terminal, plain lines in a pipe."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_runs import Listener, small

import tpdist
from tpdist.data import Progress
from tpdist.launch.local import dry_run
from tpdist.training import progress
from tpdist.training.progress import DataBar, Live, Plain, Status, clock, reporter

STATUS = Status(2, 5, 30, 100, 4.5, 90.017, 0.123456, 0.000321, 12345.6, 65.0)
LINE = "epoch 2/5  loss 4.500  ppl 90.0  |r| 0.123  |s| 0.000321  12,346 tok/s  1:05 left"


def test_the_line():
    assert STATUS.text() == LINE


def test_plain_lines_now_and_then(capsys, monkeypatch):
    plain = Plain()
    plain.step(STATUS)
    assert capsys.readouterr().out == ""  # ten seconds have not passed
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    plain.say("hello")
    plain.step(STATUS)
    plain.close()
    assert capsys.readouterr().out == f"hello\n  step 30/100  {LINE}\n"


def test_live_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # a dumb one has 80 columns, whatever it is told
    screen = io.StringIO()
    live = Live(Console(file=screen, force_terminal=True, width=140, highlight=False))
    live.say("before [the] bar")
    assert "\x1b" not in screen.getvalue()  # nothing moves yet, so errors find a plain terminal
    live.step(STATUS)
    live.say("above the bar")
    live.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "before [the] bar\n" in text
    assert "above the bar\n" in text
    assert f" 30%  {LINE}" in text
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1  # the cursor comes back


def test_live_that_never_took_a_step_leaves_the_terminal_alone():
    screen = io.StringIO()
    Live(Console(file=screen, force_terminal=True)).close()
    assert "\x1b[?25l" not in screen.getvalue()


def test_a_terminal_that_is_gone_ends_nothing_by_itself():
    """Its SIGHUP does, once all is saved."""
    ours, theirs = os.openpty()
    with open(theirs, "w") as screen:
        live = Live(Console(file=screen, force_terminal=True))
        live.step(STATUS)
        os.close(ours)
        with pytest.raises(OSError, match="Input/output"):
            print("a line", file=screen, flush=True)
        live.say("a line")
        live.step(STATUS)
        live.close()
        Live(Console(file=screen, force_terminal=True)).step(STATUS)
        with suppress(OSError):
            screen.close()


def test_a_dumb_terminal_that_is_gone_ends_nothing_by_itself_either(monkeypatch):
    ours, theirs = os.openpty()
    with open(theirs, "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        os.close(ours)
        Plain().say("a line")
        with suppress(OSError):
            screen.close()


def test_a_preparation_goes_on_too(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    with open(theirs, "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        with DataBar() as bar:
            bar(Progress("encode", "train", 500, 1000, "bytes"))
            assert bar._bar is not None
            os.close(ours)
            bar(Progress("encode", "train", 1000, 1000, "bytes"))
        with suppress(OSError):
            screen.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], None]:
    """Makes standard output one from then on."""

    def make() -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    return make


def test_the_reporter_fits_the_output(monkeypatch, terminal):
    assert isinstance(reporter(), Plain)
    terminal()
    assert isinstance(reporter(), Live)
    monkeypatch.setenv("TERM", "dumb")  # where a bar is drawn once, at the end
    assert isinstance(reporter(), Plain)


def test_the_bar_of_a_preparation(monkeypatch, capsys, terminal):
    at = Progress("encode", "train", 500, 1000, "bytes")
    with DataBar() as bar:
        bar(at)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
        bar(at)
        assert capsys.readouterr().out == "  encode train: 500/1,000 bytes\n"
        terminal()
        bar(at)
        assert bar._bar is not None
        assert bar._bar.live.is_started
    assert not bar._bar.live.is_started  # also after an error


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3725.4, "1:02:05"), (float("inf"), "?"), (float("nan"), "?")]
)
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text


def test_training_goes_on_when_nobody_reads(monkeypatch, small_corpus: Path, tmp_path: Path):
    """`tpdist train … | head`: the run is worth more than its lines."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    assert tpdist.train(small(small_corpus, run={"epochs": 1}), tmp_path / "run", Plain()).steps == 9


def test_it_goes_on_where_the_system_writes_no_greek():
    """What is said to nobody holds λ and θ too."""
    code = 'from tpdist.training.progress import Plain; Plain().say("run"); Plain().say("\\u03bb 0.1")'
    script = f"""{{ sleep 1; "{sys.executable}" -c '{code}'; }} | :; exit "${{PIPESTATUS[0]}}" """
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, **ascii_only})
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_left_of_a_run_that_goes_on_with_other_streams(small_corpus: Path, tmp_path: Path):
    """Its epochs so far had another length."""
    tpdist.train(small(small_corpus, method={"name": "bptt"}, run={"epochs": 1}), tmp_path / "run")
    listener = Listener()
    tpdist.resume(tmp_path / "run", ["batching.streams=6", "run.epochs=3"], listener)
    assert [(s.step, s.steps) for s in listener.statuses] == [(9 + i, 15) for i in range(1, 7)]
    assert listener.statuses[0].seconds_left > 0
    assert listener.statuses[-1].seconds_left == 0


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ({"name": "bptt"}, "λ 0, 1 θ-step"),
        ({"name": "pm", "h_steps": 2, "starts": "tied", "theta_steps": 3}, "λ 0.2, 2 H-steps (tied starts), 3 θ-steps"),
        ({"name": "alm", "theta_steps": 2}, "λ 0.2, 2 steps on H and θ (held starts)"),
        ({"name": "costate"}, "λ 0.2, 1 θ-step, 2 costate sweeps"),
        ({"name": "costate", "sweeps": 1}, "λ 0.2, 1 θ-step, 1 costate sweep"),
    ],
    ids=str,
)
def test_the_steps_of_a_visit_are_said(method: dict[str, Any], wanted: str, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, method=method, objective={"weight": 0.0 if method["name"] == "bptt" else 0.2})
    assert dry_run(config, tmp_path / "run", [], None)[2].endswith(f"9 windows an epoch; {wanted}")


def test_what_a_run_says(small_corpus: Path, tmp_path: Path):
    listener = Listener()
    result = tpdist.train(small(small_corpus), tmp_path / "run", listener)
    assert listener.said[:3] == [
        f"run {tmp_path / 'run'}",
        "199 tokens, 12 types; gru 6, 408 parameters, cpu, float32",
        "admm: B=4, S=2, K=3, 9 windows an epoch; λ 0.2, 1 H-step (held starts), 1 θ-step",
    ]
    assert len(listener.statuses) == 18
    assert [(s.epoch, s.epochs, s.step, s.steps) for s in listener.statuses[8:10]] == [(1, 2, 9, 18), (2, 2, 10, 18)]
    assert listener.statuses[-1].seconds_left == 0
    assert all(s.primal > 0 and s.tokens_per_second > 0 for s in listener.statuses)
    assert [text[:9] for text in listener.said[3:5]] == ["epoch   1", "epoch   2"]
    unigram = f"(unigram model {result.unigram_perplexity:.2f})"
    assert listener.said[5].startswith(
        f"validation perplexity {result.valid_perplexity:.2f} {unigram}, test perplexity"
    )
    assert listener.said[6].startswith("18 updates in 0:")
    assert listener.said[6].endswith(f"results in {tmp_path / 'run/result.json'}")
    assert listener.closed
