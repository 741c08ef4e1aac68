"""What is left of a run that ends before its first update."""

import re
import sys
from pathlib import Path

import pytest
from small_runs import Listener, Parts, assert_same_runs, interrupted, small

import tpdist
from tpdist import ConfigError, DataError

FAILURES: list[tuple[dict[str, Parts], type[Exception], str]] = [
    (
        {"optimizer": {"options": {"bets": 1.0}}},
        ConfigError,
        r"optimizer.options.bets: torch.optim.Adam takes no 'bets'; it",
    ),
    (
        {"optimizer": {"options": {"betas": 0.9}}},
        ConfigError,
        "optimizer.options.betas: torch.optim.Adam: 'float' object is not subscriptable; got 0.9",
    ),
    ({"optimizer": {"options": {"betas": (2.0, 0.9)}}}, ConfigError, "torch.optim.Adam: Invalid beta parameter"),
    (
        {"optimizer": {"options": {"capturable": True, "fused": False}}},
        ConfigError,
        r"^optimizer\.options: torch\.optim\.Adam: (.*); got capturable: true, fused: false$",
    ),
    (
        {"optimizer": {"name": "adagrad", "options": {"initial_accumulator_value": 1e308}}},
        ConfigError,
        r"^optimizer\.options\.initial_accumulator_value: torch\.optim\.Adagrad: (.*)overflow; got 1e\+308$",
    ),
    (
        {"method": {"h_optimizer": {"options": {"eps": 1.0}}}},
        ConfigError,
        "method.h_optimizer.options.eps: torch.optim.SGD",
    ),
    ({"batching": {"streams": 60}}, ConfigError, "batching.streams: 60 streams of at least one block of 4 steps need"),
    (
        {"batching": {"blocks": 26}},
        ConfigError,
        "batching.blocks: a window of 26 blocks is longer than a stream, which",
    ),
    ({"run": {"device": "cuda"}}, ConfigError, "run.device: torch sees no CUDA device here; write cpu or auto"),
    (
        {"model": {"cell": "no.such:Cell", "allow_cells_from": ["no"]}},
        ConfigError,
        r"model.cell: cannot load 'no.such:",
    ),
    ({"data": {"level": "char"}}, DataError, "made with data.level word, the configuration has char"),
]


@pytest.mark.parametrize(("parts", "kind", "said"), FAILURES)
def test_bad_input_leaves_no_directory(parts, kind, said: str, small_corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    listener = Listener()
    with pytest.raises(kind, match=re.escape(said) if "(" not in said else said):
        tpdist.train(small(small_corpus, **parts), tmp_path / "run", listener)
    assert not (tmp_path / "run").exists()
    assert listener.closed


def test_a_fault_of_the_users_own_cell_is_not_swallowed(small_corpus: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "faulty_cells.py").write_text(
        "from tpdist.models import GRU\n"
        "class Faulty(GRU):\n"
        "    def forward(self, x, state):\n"
        "        return {}['mine']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = {"cell": "faulty_cells:Faulty", "allow_cells_from": ["faulty_cells"]}
    with pytest.raises(KeyError, match="mine"):
        tpdist.train(small(small_corpus, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_control_c_before_the_first_update(small_corpus: Path, tmp_path: Path, monkeypatch):
    """What is saved then is the beginning."""
    run = tmp_path / "run"
    tpdist.train(small(small_corpus), tmp_path / "whole")
    saying = Listener()
    monkeypatch.setattr(saying, "say", lambda text: __import__("signal").raise_signal(2) if "B=4" in text else None)
    assert "stopped at step 0; saved" in interrupted(lambda: tpdist.train(small(small_corpus), run, saying))
    tpdist.resume(run)
    assert_same_runs(tmp_path / "whole", run)


def test_control_c_while_ray_is_imported(small_corpus: Path, tmp_path: Path, monkeypatch):
    class Interrupt:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "tpdist.launch.many":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "tpdist.launch.many", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupt, *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        tpdist.train(small(small_corpus, cluster={"workers": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
