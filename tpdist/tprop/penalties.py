"""What couples a target to its prediction: the penalty C of Eq. 6, and Eq. 8's loss on the target.

Shape letters: `window.py`; here n boundaries at once.
"""

from torch import Tensor
from torch.nn import functional

from tpdist.errors import ConfigError
from tpdist.models import IGNORED, LanguageModel
from tpdist.tprop.plan import Terms


def l2(target: Tensor, prediction: Tensor, dual: Tensor, coupled: Tensor) -> Tensor:
    """Σ ½ ‖h - ĥ + u‖² over coupled boundaries (Eq. 7 without λ). [n, d] each, coupled [n] -> scalar."""
    return 0.5 * ((target - prediction + dual).square().sum(-1) * coupled).sum()


def kl(model: LanguageModel, target: Tensor, prediction: Tensor, coupled: Tensor) -> Tensor:
    """Σ KL(f(h) ‖ f(ĥ)) over coupled boundaries: Section 4.3's proposal, in nats; f as in Eq. 2, with b_y.

    It sees the top layer's h alone: target and prediction [n, d] -> scalar.
    """
    log_p = functional.log_softmax(model.logits(model.visible(target)), -1)
    log_q = functional.log_softmax(model.logits(model.visible(prediction)), -1)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * coupled).sum()


def penalty(
    model: LanguageModel, terms: Terms, target: Tensor, prediction: Tensor, dual: Tensor, coupled: Tensor
) -> Tensor:
    """λ C(ĥ, h) summed over n boundaries, in nats: target, prediction, dual [n, d], coupled [n] -> scalar.

    `kl` alone takes `l2` on what the head does not see (an lstm's c, lower layers), without a dual. An own penalty
    gives C(h, ĥ) of every boundary that is coupled; it has no dual either. Raises ConfigError where it gives something
    else.
    """
    if not (terms.weight or terms.kl_weight):
        return target.new_zeros(())
    if terms.own is not None:
        here = coupled > 0  # elsewhere a state may be 0, where C need not be a number
        h, predicted = target[here], prediction[here]
        if not len(h):
            return target.new_zeros(())
        cost = terms.own(h, predicted)
        if not isinstance(cost, Tensor) or cost.shape != h.shape[:1]:
            got = f"a tensor {list(cost.shape)}" if isinstance(cost, Tensor) else type(cost).__name__
            raise ConfigError(
                f"{terms.penalty!r} must return a number for each of the {len(h)} boundaries it is given, "
                f"a tensor [{len(h)}]; it returned {got}",
                "objective.penalty",
            )
        return terms.weight * cost.sum()
    if terms.penalty == "l2":
        return terms.weight * l2(target, prediction, dual, coupled)
    divergence = terms.kl_weight * kl(model, target, prediction, coupled)
    if terms.penalty == "l2+kl":
        return divergence + terms.weight * l2(target, prediction, dual, coupled)
    residual = target - prediction
    unseen = residual.square().sum(-1) - model.visible(residual).square().sum(-1)
    return divergence + terms.weight * 0.5 * (unseen * coupled).sum()


def target_loss(model: LanguageModel, target: Tensor, label: Tensor, coupled: Tensor) -> Tensor:
    """Eq. 8: the cross entropy of a boundary's token, read off the target. target [n, d], label [n] -> scalar."""
    return model.loss(model.visible(target), label.where(coupled > 0, IGNORED))
