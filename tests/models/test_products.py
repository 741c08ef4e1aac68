"""Matrix products of float32 on a CPU against `mm` in float64."""

import pytest
import torch

from tpdist.models.products import HAS_ONEDNN, linear, weight_gradient

SHAPES = ((1, 5, 7), (3, 1, 1), (40, 20, 60), (0, 5, 7), (3, 0, 4), (2, 3, 0))  # M, K, N


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_both_products_equal_mm(rows: int, inner: int, columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(rows, inner, dtype=dtype), torch.randn(rows, columns, dtype=dtype)
    weight, bias = torch.randn(columns, inner, dtype=dtype), torch.randn(columns, dtype=dtype)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-14, "atol": 1e-14}
    exact = x.double() @ weight.double().t()
    torch.testing.assert_close(linear(x, weight).double(), exact, **close)
    torch.testing.assert_close(linear(x, weight, bias).double(), exact + bias.double(), **close)
    torch.testing.assert_close(weight_gradient(gradient, x).double(), gradient.double().t() @ x.double(), **close)


@pytest.mark.usefixtures("onednn")
@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN for it")
def test_parts_and_transposed_tensors_are_what_their_copies_are() -> None:
    """Each is a layout that the cells or the head hand over; slices are those that oneDNN would take slowly."""
    torch.manual_seed(0)
    x, wide, weight = torch.randn(64, 8), torch.randn(64, 30), torch.randn(8, 20)
    for product, copied in (
        (linear(x, weight.t()), linear(x, weight.t().contiguous())),
        (linear(x, wide[:20, 3:11]), linear(x, wide[:20, 3:11].contiguous())),
        (linear(wide[:, :8], weight.t()), linear(wide[:, :8].contiguous(), weight.t())),
        (weight_gradient(wide[:, :20], x), weight_gradient(wide[:, :20].contiguous(), x)),
    ):
        torch.testing.assert_close(product, copied)
