"""The least squares of method `als`: rows, normal equations of every group of parameters, and what solves them.

What is majorised, and why: `als.py`. Shape letters: `window.py`, `tpdist.models.cells`; n blocks at once, p features
of a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.models import IGNORED, MRNN, Elman, LanguageModel, cross_entropy
from tpdist.tprop.parts import chunks
from tpdist.tprop.plan import Plan
from tpdist.tprop.prediction import predict
from tpdist.tprop.window import Window

NUMBERS = 2**24  # of a chunk's largest tensor


@dataclass(frozen=True)
class Rows:
    """The least squares rows of n blocks. start, pull [n, d]; types [n] ids; weight [n], 0 where no token is."""

    start: Tensor
    types: Tensor
    weight: Tensor
    pull: Tensor

    def split(self, numbers: int) -> Iterator["Rows"]:
        """Chunks of rows with `numbers` numbers each in their largest tensor."""
        for c in chunks(len(self.types), max(1, NUMBERS // numbers)):
            yield Rows(self.start[c], self.types[c], self.weight[c], self.pull[c])


# Parameters: for each group, a function that returns sums over this worker's blocks, and one that steps by them.

Equations = Callable[[LanguageModel, Plan, Window, Tensor], list[Tensor]]
Step = Callable[[LanguageModel, list[Tensor]], None]


def parameter_groups(model: LanguageModel) -> list[tuple[Equations, Step]]:
    """(normal equations, step) of each group, in the order in which they are solved."""
    if isinstance(cell_of(model), MRNN):
        features = [recurrent_features, input_features, vector_features]
        steps = [_step_recurrent, _step_input, _step_vectors]
    else:
        features, steps = [affine_features], [_step_affine]
    cell_groups = [(_cell_equations(f), s) for f, s in zip(features, steps, strict=True)]
    return [*cell_groups, (embedding_equations, _step_embedding), (head_equations, _step_head)]


def rows_of(model: LanguageModel, plan: Plan, window: Window, h: Tensor) -> Rows:
    """Every block as a row: Σ w/2 ‖ĥ - s‖² majorises what the objective says of ĥ; pull = w (s - ĥ) at present."""
    k, d = window.blocks, h.shape[2]
    start, types = h[:, :k].reshape(-1, d), window.inputs[0].reshape(-1)
    prediction = predict(model, window.inputs, h[:, :k], plan.chunk_blocks).view(-1, d)
    pull = plan.terms.weight * (h[:, 1:].reshape(-1, d) - prediction) * window.coupled[:, 1:].reshape(-1, 1)
    ends = ends_of(window).reshape(-1)
    pull[ends] = -loss_slopes(model, prediction[ends], window.labels[0].reshape(-1)[ends])[0]
    return Rows(start, types, row_weights(model, plan, window).reshape(-1), pull)


def affine_features(cell: Elman, start: Tensor, x: Tensor) -> Tensor:
    """ĥ = (W_h W_x b) (h, x, 1): the same features for every row. -> [n, 1, d+E+1]."""
    return torch.cat([start, x, torch.ones_like(x[:, :1])], 1)[:, None]


def recurrent_features(cell: MRNN, start: Tensor, x: Tensor) -> Tensor:
    """ĥ = (α ⊙ W_x x + β_h) ⊙ W_h h + …: features of W_h's rows [n, d, d]."""
    return (cell.alpha * cell.input(x) + cell.beta_h)[:, :, None] * start[:, None]


def input_features(cell: MRNN, start: Tensor, x: Tensor) -> Tensor:
    """ĥ = (α ⊙ W_h h + β_x) ⊙ W_x x + …: features of W_x's rows [n, d, E]."""
    return (cell.alpha * cell.recurrent(start) + cell.beta_x)[:, :, None] * x[:, None]


def vector_features(cell: MRNN, start: Tensor, x: Tensor) -> Tensor:
    """ĥ = α (W_x x ⊙ W_h h) + β_h W_h h + β_x W_x x + b: features of the vectors' entries [n, d, 4]."""
    by_x, by_h = cell.input(x), cell.recurrent(start)
    return torch.stack([by_x * by_h, by_h, by_x, torch.ones_like(by_x)], 2)


def _cell_equations(features: Callable[..., Tensor]) -> Equations:
    """Normal matrices [1 or d, p, p] and right sides [d, p] of the rows of a linear map onto ĥ."""

    def equations(model: LanguageModel, plan: Plan, window: Window, h: Tensor) -> list[Tensor]:
        cell = cell_of(model)
        sums: list[Tensor] = []
        # the widest feature tensors are [n, d, d], [n, d, E]
        for rows in rows_of(model, plan, window, h).split(cell.hidden * max(cell.hidden, cell.inputs, 4)):
            f = features(cell, rows.start, model.embedding(rows.types))
            by_row = f.transpose(0, 1)
            normal = by_row.mT @ (by_row * rows.weight[:, None])
            right = (f * rows.pull[:, :, None]).sum(0) if f.shape[1] > 1 else rows.pull.T @ f[:, 0]
            sums = [a + b for a, b in zip(sums, (normal, right), strict=True)] if sums else [normal, right]
        return sums

    return equations


def _step_affine(model: LanguageModel, sums: list[Tensor]) -> None:
    cell = cell_of(model)
    by_h, by_x, bias = solve(*sums).split([cell.hidden, cell.inputs, 1], 1)
    cell.recurrent.weight.add_(by_h)
    cell.input.weight.add_(by_x)
    cell.input.bias.add_(bias[:, 0])


def _step_recurrent(model: LanguageModel, sums: list[Tensor]) -> None:
    cell_of(model).recurrent.weight.add_(solve(*sums))


def _step_input(model: LanguageModel, sums: list[Tensor]) -> None:
    cell_of(model).input.weight.add_(solve(*sums))


def _step_vectors(model: LanguageModel, sums: list[Tensor]) -> None:
    cell = cell_of(model)
    assert isinstance(cell, MRNN)
    for vector, change in zip((cell.alpha, cell.beta_h, cell.beta_x, cell.bias), solve(*sums).unbind(1), strict=True):
        vector.add_(change)


def embedding_equations(model: LanguageModel, plan: Plan, window: Window, h: Tensor) -> list[Tensor]:
    """ĥ = slope ⊙ W_x e_v + …: Σ w slope² and Σ slope ⊙ pull over the tokens of each type, both [V, d]."""
    rows = rows_of(model, plan, window, h)
    slope = slope_of_input(model, rows.start)
    zero = rows.pull.new_zeros(model.embedding.num_embeddings, rows.pull.shape[1])
    squares = zero.index_add(0, rows.types, rows.weight[:, None] * slope.square())
    return [squares, zero.index_add(0, rows.types, slope * rows.pull)]


def _step_embedding(model: LanguageModel, sums: list[Tensor]) -> None:
    matrix = cell_of(model).input.weight
    for c in chunks(len(sums[0]), max(1, NUMBERS // matrix.numel())):
        scaled = sums[0][c].sqrt()[:, :, None] * matrix
        model.embedding.weight[c] += solve(scaled.mT @ scaled, sums[1][c] @ matrix)


def head_equations(model: LanguageModel, plan: Plan, window: Window, h: Tensor) -> list[Tensor]:
    """½ Σ ψψᵀ [1, d+1, d+1] and -Σ g ψᵀ [V, d+1] with ψ = (h, 1), or (ĥ, 1) where no constraint follows."""
    k = window.blocks
    prediction = predict(model, window.inputs, h[:, :k], plan.chunk_blocks)
    read = h[:, 1:].where(window.coupled[:, 1:, None] > 0, prediction).flatten(0, 1)
    labels = window.labels[0].reshape(-1)
    _, by_weight, by_bias = loss_slopes(model, read, labels)
    psi = torch.cat([read, torch.ones_like(read[:, :1])], 1)[labels != IGNORED]
    return [0.5 * (psi.T @ psi)[None], -torch.cat([by_weight, by_bias[:, None]], 1)]


def _step_head(model: LanguageModel, sums: list[Tensor]) -> None:
    change = solve(*sums)
    model.weight.add_(change[:, :-1])
    model.bias.add_(change[:, -1])


# The pieces


def cell_of(model: LanguageModel) -> Elman | MRNN:
    """The one layer of the model, whose activation the configuration has checked to be `identity`."""
    cell = model.layers[0]
    assert isinstance(cell, Elman | MRNN)
    return cell


def ends_of(window: Window) -> Tensor:
    """[S, k] bool: blocks with a token and no constraint after it."""
    return (window.labels[0] != IGNORED) & (window.coupled[:, 1:] == 0)


def row_weights(model: LanguageModel, plan: Plan, window: Window) -> Tensor:
    """[S, k]: λ where a constraint follows, ½ ‖W_y‖² at ends, 0 where no token is."""
    # an overflown number is met everywhere else too; here it would raise
    weight = torch.nan_to_num(model.weight.detach(), nan=0.0, posinf=0.0, neginf=0.0)
    curvature = 0.5 * torch.linalg.matrix_norm(weight, 2).square()
    return plan.terms.weight * window.coupled[:, 1:] + curvature * ends_of(window)


def slope_of_recurrent(model: LanguageModel, types: Tensor) -> Tensor:
    """∂ĥ/∂(W_h h), a diagonal: types [n] -> [n, d]."""
    cell = cell_of(model)
    if isinstance(cell, Elman):
        return cell.input.weight.new_ones(len(types), cell.hidden)
    return cell.alpha * cell.input(model.embedding(types)) + cell.beta_h


def slope_of_input(model: LanguageModel, start: Tensor) -> Tensor:
    """∂ĥ/∂(W_x x), a diagonal: start [n, d] -> [n, d]."""
    cell = cell_of(model)
    return torch.ones_like(start) if isinstance(cell, Elman) else cell.alpha * cell.recurrent(start) + cell.beta_x


def loss_slopes(model: LanguageModel, h: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """∂CE/∂h [n, d], ∂CE/∂W_y [V, d], ∂CE/∂b_y [V] of the summed cross entropy; h [n, d], labels [n]."""
    with torch.enable_grad():
        h, weight, bias = (x.detach().requires_grad_() for x in (h, model.weight, model.bias))
        return torch.autograd.grad(cross_entropy(h, weight, bias, labels, model.product_dtype), (h, weight, bias))


def solve(normal: Tensor, right: Tensor) -> Tensor:
    """(N + ridge I)⁻¹ right by Cholesky: N [m, p, p] or one for all [1, p, p], right [m, p] -> [m, p].

    ridge: N's mean diagonal times the square root of the dtype's rounding unit (1.5e-8 in float64). Where numbers have
    overflowed there is no factor, and the solution is not a number.
    """
    info = torch.finfo(normal.dtype)
    ridge = info.eps**0.5 * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=info.tiny**0.5)
    factor, failed = torch.linalg.cholesky_ex(normal + ridge[:, None, None] * torch.eye(normal.shape[1]).to(normal))
    factor = factor.masked_fill((failed > 0)[:, None, None], torch.nan)
    if len(factor) == 1:
        return torch.cholesky_solve(right.T, factor[0]).T
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
