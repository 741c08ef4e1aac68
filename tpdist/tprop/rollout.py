"""One roll-out of a window's blocks that serves every pass of a visit, while starts and θ stay where they are.

With starts held, or not moved at all, H-steps, costate sweeps and the first θ-step all differentiate the same forward
pass. Its cross entropy has one gradient with respect to the starts; what changes from pass to pass enters at the
predictions, and is pulled back through the recurrence alone. So the head, which costs most, is passed once a visit.

The oracle is `blocks_pass` without a roll-out (tests/tprop/test_rollout.py). Shape letters: `window.py`.
"""

from functools import cached_property

import torch
from torch import Tensor

from tpdist.models import IGNORED, LanguageModel
from tpdist.tprop.plan import Terms
from tpdist.tprop.window import Window


def own_labels(terms: Terms, labels: Tensor, coupled: Tensor, constrained: bool) -> Tensor:
    """Labels [B, n] of the tokens that blocks score themselves: without those whose loss sits on a target (Eq. 8)."""
    if terms.loss_on == "prediction" or not constrained:
        return labels
    return torch.cat([labels[:-1], labels[-1].where(coupled == 0, IGNORED)[None]])


class RollOut:
    """All blocks rolled out from `start` [S, k, d] with their graph kept; they fit into one chunk.

    prediction: ĥ [S k, d], with its graph. The head is passed when `loss` is first asked for: what is sent before is
    under way in the meantime.
    """

    def __init__(self, model: LanguageModel, terms: Terms, window: Window, start: Tensor):
        self._model, self._terms, self._window = model, terms, window
        with torch.enable_grad():
            # a copy: the boundaries that it is a view of change while the graph lives
            self.start = start.reshape(-1, start.shape[-1]).detach().clone().requires_grad_()
            self._h, self.prediction = model.unroll(window.inputs.flatten(1), self.start)

    @cached_property
    def loss(self) -> Tensor:
        """The cross entropy of every token whose loss does not sit on a target, with its graph."""
        window = self._window
        coupled = window.coupled[:, 1:].reshape(-1)
        labels = own_labels(self._terms, window.labels.flatten(1), coupled, window.constrained)
        with torch.enable_grad():
            return self._model.loss(self._h, labels)

    @cached_property
    def loss_gradient(self) -> Tensor:
        """Of `loss` with respect to the starts, [S k, d]."""
        return torch.autograd.grad(self.loss, self.start, retain_graph=True)[0]

    def gradient(self, at_prediction: Tensor) -> Tensor:
        """Of `loss` plus a function whose gradient at the predictions is `at_prediction`, [S k, d], in one pass."""
        roots, ups = (self.loss, self.prediction), (torch.ones_like(self.loss), at_prediction)
        return torch.autograd.grad(roots, self.start, ups, retain_graph=True)[0]

    def pull_back(self, at_prediction: Tensor) -> Tensor:
        """Jᵀ v: a gradient at the predictions [S k, d] as one at the starts."""
        return torch.autograd.grad(self.prediction, self.start, at_prediction, retain_graph=True)[0]
