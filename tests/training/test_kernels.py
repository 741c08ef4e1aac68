"""What a run computes with: its dtype, its kernels, whether they repeat to the bit; torch's settings are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small

import tpdist
from tpdist.data import Store
from tpdist.training.evaluation import Evaluation, evaluate_tokens
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.worker import run_worker


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.03), ("float64", 1e-3)])
def test_dtypes_train_alike(dtype: str, near: float, small_corpus: Path, tmp_path: Path):
    """Against float32; bfloat16 rounds matrix products to three digits."""
    parts = {"run": {"epochs": 3, "dtype": dtype}}
    first = tpdist.train(small(small_corpus, run={"epochs": 3}), tmp_path / "float32")
    other = tpdist.train(small(small_corpus, **parts), tmp_path / dtype)
    assert other.valid_perplexity == pytest.approx(first.valid_perplexity, rel=near)
    assert other.valid_perplexity != first.valid_perplexity
    again = tpdist.evaluate(tmp_path / dtype).perplexity
    assert again == other.valid_perplexity


def test_deterministic_runs_repeat_and_leave_torch_as_it_was(small_corpus: Path, tmp_path: Path):
    seen = []
    for name in ("one", "two"):
        config = small(small_corpus, run={"deterministic": True})
        seen.append(tpdist.train(config, tmp_path / name).valid_perplexity)
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen[0] == seen[1]
    assert Store.open(small_corpus).manifest.unigram_perplexity["valid"] > seen[0]


def test_kernels_are_those_of_the_run_and_then_as_they_were(small_corpus: Path, tmp_path: Path, monkeypatch):
    was, during = precisions(), []

    def evaluated(*arguments: Any, **options: Any) -> Evaluation:
        during.append(precisions())
        return evaluate_tokens(*arguments, **options)

    monkeypatch.setattr("tpdist.launch.trained.evaluate_tokens", evaluated)
    monkeypatch.setattr("tpdist.training.epoch_end.evaluate_tokens", evaluated)
    tpdist.train(small(small_corpus, run={"epochs": 1}), tmp_path / "run")
    assert precisions() == was
    tpdist.evaluate(tmp_path / "run")
    assert precisions() == was
    assert during == [("ieee", "ieee")] * 3  # validation and test of the run, and the command's
    assert torch.get_float32_matmul_precision() == "highest"  # raises where a setting was left behind


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]


def test_a_worker_is_deterministic_wherever_it_is_hosted(small_corpus: Path, tmp_path: Path):
    """Not by the command's process alone: under Ray it has one of its own."""
    config = small(small_corpus, run={"deterministic": True, "epochs": 1})
    try:
        run_worker(config, Store.open(small_corpus), RunDirectory.create(config, tmp_path / "run"), Silent(), False)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
