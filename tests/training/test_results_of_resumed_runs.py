"""What a run says and leaves where it goes on after its end, or otherwise than it began."""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import Listener, during_evaluation, figures, interrupted, small

import tpdist
from tpdist.training import epoch_end
from tpdist.training.evaluation import Evaluation
from tpdist.training.run_dir import RunDirectory


def test_a_result_of_fewer_epochs_is_written_anew(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Also where what stops the run stops it in the evaluation of the test split."""
    run = tmp_path / "run"
    tpdist.train(small(small_corpus, run={"epochs": 1, "test": False}), run)
    assert figures(run)["test_perplexity"] is None
    with monkeypatch.context() as patch:
        during_evaluation(patch, 2)
        interrupted(lambda: tpdist.resume(run, ["run.epochs=2", "run.test=true"]))
    result = tpdist.resume(run)
    assert (figures(run)["epochs"], figures(run)["test_perplexity"]) == (2, result.test_perplexity)
    assert result.tokens_per_second == pytest.approx(2 * 199 / result.seconds)
    tpdist.train(small(small_corpus), tmp_path / "whole")
    assert figures(run) == figures(tmp_path / "whole")


def test_a_test_figure_that_is_asked_for_later_stays(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus, run={"test": False}), run)
    result = tpdist.resume(run, ["run.test=true"])
    assert figures(run)["test_perplexity"] == result.test_perplexity is not None
    assert RunDirectory(run).load_config().run.test


def test_the_best_model_of_an_epoch_that_is_lost_does_not_count(small_corpus: Path, tmp_path: Path):
    """Its checkpoint is damaged, and the epochs that replace it are worse."""
    run = tmp_path / "run"
    tpdist.train(small(small_corpus), run)
    shutil.rmtree(run / "checkpoints/step-00000018-epoch")
    listener = Listener()
    result = tpdist.resume(run, ["optimizer.lr=5"], listener)
    assert "best.json: is of step 18, and the best until the checkpoint, of step 9, is gone" in listener.text
    assert result.best_epoch == 2
    assert json.loads((run / "models/best.json").read_text())["valid_perplexity"] == result.valid_perplexity
    assert tpdist.evaluate(run, "test").perplexity == pytest.approx(result.test_perplexity)


def test_a_run_that_is_out_of_patience_says_what_helps(small_corpus: Path, tmp_path: Path, monkeypatch):
    losses = iter([2.0, 3.0, 1.0])
    monkeypatch.setattr(epoch_end, "evaluate_tokens", lambda *_, **__: Evaluation(next(losses), 20))
    run, listener = tmp_path / "run", Listener()
    assert tpdist.train(small(small_corpus, run={"epochs": 3, "patience": 1, "test": False}), run).epochs == 2
    tpdist.resume(run, reporter=listener)
    assert "nothing is left to do; for more: --set run.patience=2, or more" in listener.said
    assert tpdist.resume(run, ["run.patience=2"]).epochs == 3
