"""What a run says and leaves where it goes on after its end, or otherwise than it began."""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import Listener, assert_same_runs, during_evaluation, figures, interrupted, small, stop_at, tensors

import tpdist
from tpdist import RunError
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


@pytest.mark.parametrize(("epochs", "helps"), [(3, ["run.patience=2"]), (2, ["run.epochs=3", "run.patience=2"])])
def test_a_run_that_is_out_of_patience_says_what_helps(
    epochs: int, helps: list[str], small_corpus: Path, tmp_path: Path, monkeypatch
):
    losses = iter([2.0, 3.0, 1.0])
    monkeypatch.setattr(epoch_end, "evaluate_tokens", lambda *_, **__: Evaluation(next(losses), 20))
    run, listener = tmp_path / "run", Listener()
    assert tpdist.train(small(small_corpus, run={"epochs": epochs, "patience": 1, "test": False}), run).epochs == 2
    tpdist.resume(run, reporter=listener)
    assert f"nothing is left to do; for more: --set {' '.join(helps)}, or more" in listener.said
    assert tpdist.resume(run, helps).epochs == 3


def test_a_finished_run_resumes_to_itself_and_goes_on_with_more_epochs(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus, run={"epochs": 3}), tmp_path / "whole")
    first = tpdist.train(small(small_corpus), run)
    assert tpdist.resume(run).valid_perplexity == first.valid_perplexity
    interrupted(lambda: tpdist.resume(run, ["run.epochs=3"], stop_at(20)))
    assert tpdist.resume(run).epochs == 3  # the override stays with the run
    assert_same_runs(tmp_path / "whole", run)
    assert tensors(run).keys() == tensors(tmp_path / "whole").keys()


@pytest.mark.parametrize("file", ["best.json", "best.safetensors"])
def test_a_damaged_best_model_does_not_count(file: str, small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus), run)
    (run / "models" / file).write_text("{")
    with pytest.raises(
        RunError, match=rf"{file}: .*no epoch is left to write another: --set run.epochs=3, or more, or evaluate"
    ):
        tpdist.resume(run)
    listener = Listener()
    result = tpdist.resume(run, ["run.epochs=3"], listener)
    assert f"{file}: not" in listener.text
    assert "the best of the epochs to come counts" in listener.text
    assert result.best_epoch == 3
    assert tpdist.evaluate(run).perplexity == pytest.approx(result.valid_perplexity)


def test_a_run_that_is_done_stays_as_it_is(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    done = tpdist.train(small(small_corpus), run)
    result = json.loads((run / "result.json").read_text()) | {"boundary_bytes": 7}  # of when it trained
    (run / "result.json").write_text(json.dumps(result))
    before = {file: (run / file).read_bytes() for file in ("config.yaml", "result.json")}
    listener = Listener()
    again = tpdist.resume(run, ["run.epochs=1"], listener)
    assert "nothing is left to do; for more: --set run.epochs=3, or more" in listener.said
    assert again.valid_perplexity == done.valid_perplexity
    assert {file: (run / file).read_bytes() for file in before} == before


def test_that_nothing_is_left_to_train_is_said(small_corpus: Path, tmp_path: Path):
    run, listener = tmp_path / "run", Listener()
    interrupted(lambda: tpdist.train(small(small_corpus), run, stop_at(11)))  # in epoch 2
    tpdist.resume(run, ["run.epochs=1"], listener)
    assert "nothing is left to train; for more: --set run.epochs=2, or more" in listener.said


def test_a_run_that_has_lost_its_best_model_and_has_no_epoch_left_is_said(small_corpus: Path, tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    interrupted(lambda: tpdist.train(small(small_corpus), run.path, stop_at(11)))
    (run.models / "best.safetensors").write_bytes(b"{")
    interrupted(lambda: tpdist.resume(run.path, reporter=stop_at(12)))  # which saves that there is none
    with pytest.raises(
        RunError, match=r"its best epoch was damaged; no epoch is left to write another: --set run\.epochs=2"
    ):
        tpdist.resume(run.path, ["run.epochs=1"])
    assert tpdist.resume(run.path).best_epoch == 2
