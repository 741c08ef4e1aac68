"""The models that a run keeps."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from small_runs import Listener, small

import tpdist
from tpdist import RunError
from tpdist.launch.trained import damaged_models
from tpdist.models import build_model
from tpdist.training import kept_model


def test_of_a_pair_that_was_not_saved_whole_nothing_counts(small_corpus: Path, tmp_path: Path, monkeypatch):
    """The run ends between the two files of a better model; its figures are then of no other epoch's parameters."""
    run, write_json, best = tmp_path / "run", kept_model.write_json, itertools.count(1)

    def killed(path: Path, value: object) -> None:
        if path.name == "best.json" and next(best) == 2:
            raise SystemExit
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(kept_model, "write_json", killed)
        with pytest.raises(SystemExit):
            tpdist.train(small(small_corpus), run)
    with pytest.raises(RunError, match=r"best\.json: missing"):
        tpdist.evaluate(run)
    assert "best.json: missing" in damaged_models(run)[0]
    listener = Listener()
    result = tpdist.resume(run, ["optimizer.lr=5"], listener)  # the epoch that comes in its place is worse
    assert "best.json: missing" in listener.text
    assert (result.best_epoch, result.valid_perplexity) == (2, pytest.approx(tpdist.evaluate(run).perplexity))


@pytest.mark.parametrize("shape", [(1,), ()])
def test_a_file_with_more_parameters_than_the_model_is_another_models(shape: tuple[int, ...], small_corpus: Path):
    config = small(small_corpus)
    model = build_model(config.model, config.run, 12)
    more = {**dict(model.named_parameters()), "extra": torch.zeros(shape)}
    said = f"f: holds another model: parameter extra is {shape} there and absent in"
    with pytest.raises(RunError, match=re.escape(said)):
        kept_model.load_parameters(model, more, "f")
