"""What a visit leaves. Shape letters: `window.py`."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What a visit leaves, as tensors on the device: reading one waits for the device.

    loss: summed cross entropy of this worker's tokens in the θ-step's forward pass, in nats, before θ moved.
    penalty: λ C there. primal: Σ ‖h - ĥ‖² over this worker's blocks. dual: λ² Σ ‖ĥ_last - ĥ_first‖² over the
    passes of the visit (Boyd et al. 2011, Section 3.3). carry: [S, d], the window's last prediction. states: those that
    the last pass read, as in `BlowUpError`.
    """

    loss: Tensor
    penalty: Tensor
    primal: Tensor
    dual: Tensor
    carry: Tensor
    states: dict[str, Tensor] | None = None
