"""The models that a run keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import small

import tpdist
from tpdist import RunError
from tpdist.models import build_model
from tpdist.training import kept_model


def test_what_is_said_of_a_model_is_written_after_it(small_corpus: Path, tmp_path: Path, monkeypatch):
    """Who is killed between the two has a model of which the step is an older one's, and it does not count."""
    written: list[str] = []

    def noted(write: Callable[..., None]) -> Callable[..., None]:
        return lambda path, what: written.append(path.name) or write(path, what)

    for name in ("write_atomic", "write_json"):
        monkeypatch.setattr(kept_model, name, noted(getattr(kept_model, name)))
    tpdist.train(small(small_corpus, run={"epochs": 1}), tmp_path / "run")
    assert written == ["best.safetensors", "best.json", "last.safetensors", "last.json"]


def test_a_file_with_more_parameters_than_the_model_is_another_models(small_corpus: Path):
    config = small(small_corpus)
    model = build_model(config.model, config.run, 12)
    more = {**dict(model.named_parameters()), "extra": torch.zeros(1)}
    with pytest.raises(RunError, match=r"f: holds another model: parameter extra is \(1,\) there and absent in"):
        kept_model.load_parameters(model, more, "f")
