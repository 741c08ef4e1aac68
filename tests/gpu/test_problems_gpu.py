"""What the GPU's checks compare by: it passes over nothing. Runs anywhere."""

import math

import torch
from problems_gpu import largest_difference
from run import passed


def test_a_nan_is_no_agreement() -> None:
    one = {"a": torch.ones(2), "b": torch.ones(3)}
    for name in one:
        other = one | {name: torch.full_like(one[name], math.nan)}
        assert math.isnan(largest_difference(one, other))
        assert math.isnan(largest_difference(other, one))
    assert not passed({"value": math.nan, "tolerance": 1e-8})
    assert passed({"value": 0.0, "tolerance": 1e-8})
