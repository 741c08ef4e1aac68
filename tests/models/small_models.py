"""Sizes, numbers and small models in float64 that the tests of models share."""

from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.models import LanguageModel, build_model

B, N, E, H, V = 5, 3, 4, 6, 9  # shape letters: `tpdist.models.cells`; V types


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def build(seed: int = 0, dtype: str = "float64", **model: Any) -> LanguageModel:
    config = Experiment.model_validate({"model": {"hidden": H, **model}, "run": {"seed": seed, "dtype": dtype}})
    return build_model(config.model, config.run, V)
