"""Matrix products by the fastest library at hand."""

import torch
from torch import Tensor

HAS_ONEDNN = (
    torch.backends.mkl.is_available()  # an x86 CPU's build
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
ONEDNN = HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"  # where it is the faster one


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias: x [M, K], weight [N, K], bias [N] -> [M, N], in `out` or anew. Without gradient.

    oneDNN is 2.3 times as fast as MKL, which `mm` asks, on an AMD CPU with AVX-512; on one with AVX2 alone it takes 1
    to 1.8 times the time. torch gives it to its compiler alone, under a name with an underscore, with no place for the
    result to go.
    """
    if by_onednn(x):
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # oneDNN has no fast way for others: 40 times the time
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """gradientᵀ x: gradient [M, N] of x weightᵀ, x [M, K] -> [N, K]. Without gradient.

    By oneDNN it is xᵀ gradient seen transposed (so not contiguous), which takes half the time.
    """
    if by_onednn(gradient):
        return linear(x.t(), gradient.contiguous().t()).t()
    return torch.mm(gradient.t(), x)


def by_onednn(x: Tensor) -> bool:
    """Whether `linear` hands x to oneDNN, which makes a tensor for every result."""
    return ONEDNN and x.is_cpu and x.dtype == torch.float32 and x.numel() > 0  # which it refuses
