"""The settings of the paper and of its released program: `preset: paper`, `preset: released`.

A preset lies beneath what the user writes: the file wins over it, and `--set` wins over the file. It fixes the
method and leaves the corpus, the number of epochs and the workers alone. Each value carries its source: "§", "Eq."
and "Table" are those of the paper; "program" is the authors' released code (facebookresearch/TPRNN); "unsaid" marks
what neither of them tells.
"""

from typing import Any

PAPER: dict[str, Any] = {
    "model": {
        "cell": "gru",  # §4: "single-layer Gated Recurrent Unit"; its width is unsaid, so model.hidden stays
        "layers": 1,  # §4
        "tied": False,  # Eq. 2 knows no tying
    },
    "objective": {
        "block": 20,  # Table 1: the best of B = 5, 10, 20 on PTB
        "penalty": "l2",  # Eq. 7
        "weight": 1.0,  # Table 3 tries 1, 0.1 and 0.01; which one won is unsaid
        "weight_growth": 1.0,  # λ is a constant in Eq. 7
        "loss_on": "prediction",  # Eq. 5-7: the loss sits on f(ĥ)
    },
    "method": {
        "name": "admm",  # §3: "we report ADMM results"
        "h_steps": 1,  # Table 1, first row; Table 3 tries 1, 2 and 5
        "theta_steps": 1,  # Table 3
        "starts": "tied",  # Eq. 4: one variable h, target of a block and start of the next
        "first": "forward",  # §4.1: the h of a minibatch start at the current ĥ
        "edge": "carry",  # §1.1: a window starts at the last state of the window before
        "edge_free": False,  # §2: the free variables are those that a constraint ties to a prediction
        "closing": False,  # Eq. 7 has no target past the last block
        "bounded": False,  # Eq. 7 is over h itself
        "h_optimizer": {
            "name": "adagrad",  # §4: "we use Adagrad for optimization"
            "lr": 0.1,  # Table 3 tries 0.1, 0.01 and 0.001
            "clip": None,  # unsaid
            "options": {},  # unsaid
        },
        "dual": {
            "lr": 0.1,  # Table 3 tries 1, 0.1 and 0.01
            "clip": None,  # unsaid
            "start_epoch": 1,  # §3: step 3 of every round
            "keep": True,  # Eq. 7: u_t belongs to its constraint, not to a visit
            "order": "after",  # §3: step 3 follows the θ-step
        },
    },
    "batching": {
        "mode": "minibatch",  # Table 1, middle and right
        "streams": 1,  # the number of streams is unsaid; S = 1, K = 32 is the program's minibatch
        "blocks": 32,  # as above
        "order": "sequential",  # §1.1: "continuing through the dataset in this way"
    },
    "optimizer": {
        "name": "adagrad",  # §4
        "lr": 0.1,  # Table 3 tries 0.1, 0.01 and 0.001
        "clip": None,  # unsaid
        "decay": None,  # unsaid
        "options": {},  # unsaid
    },
}

RELEASED: dict[str, Any] = {
    "model": {
        "cell": "gru",  # §4
        "layers": 1,  # §4
        "hidden": 100,  # program
        "tied": False,  # program
        "init": 0.1,  # program: every parameter from uniform(-0.1, 0.1)
    },
    "objective": {
        "block": 20,  # Table 1
        "penalty": "l2",  # program
        # The program's λ is 1, but it divides the cross-entropy by B and not the penalty: CE/B + 1/2 |r + u|² is 1/B
        # of CE + B/2 |r + u|², so in the units of Eq. 7 its λ is B. The value is written out for B = 20 and does
        # not follow objective.block: whoever changes the block sets the weight too.
        "weight": 20.0,
        "weight_growth": 1.0,  # program
        "loss_on": "prediction",  # program
    },
    "method": {
        "name": "admm",  # program
        "h_steps": 10,  # program
        "theta_steps": 5,  # program
        "starts": "tied",  # program: one variable
        "first": "one-block",  # program: every block is rolled out from a zero state
        "edge": "zero",  # program: H is zeroed at every minibatch, so nothing is carried into a window
        "edge_free": True,  # program: h_0 is optimised too
        "closing": True,  # program: K constraints in a window, the last target starting at 0
        "bounded": False,  # program: offered, off
        "h_optimizer": {
            "name": "adagrad",  # program
            "lr": 1.0,  # program; Adagrad's step does not feel the factor B of the objective, but for eps
            "clip": None,  # program: offered, off
            "options": {"eps": 1e-5},  # program
        },
        "dual": {
            # The program moves u by 0.1 r. Here the step is α λ r with λ = 20, so α = 0.1 / 20.
            "lr": 0.005,
            "clip": None,  # program: offered, off
            "start_epoch": 3,  # program
            "keep": False,  # program: u is zeroed at every minibatch
            "order": "before",  # program: under its minibatch initialisation the duals move before θ
        },
    },
    "batching": {
        "mode": "minibatch",  # program
        "streams": 1,  # program: a minibatch is 32 consecutive blocks of one stream
        "blocks": 32,  # program
        "order": "sequential",  # program
    },
    "optimizer": {
        "name": "adagrad",  # §4, program
        "lr": 0.1,  # program
        "clip": 0.5,  # program
        "decay": None,  # program
        "options": {"eps": 1e-5},  # program
    },
    "run": {
        "patience": 5,  # program: ends after 5 epochs without gain
    },
}

PRESETS = {"paper": PAPER, "released": RELEASED}


def merge(beneath: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `beneath`, key by key through the parts.

    `options` is replaced whole: its names depend on the optimiser, so a mixture of two would often fit neither.
    """
    merged = dict(beneath)
    for key, value in above.items():
        under = beneath.get(key)
        if isinstance(under, dict) and isinstance(value, dict) and key != "options":
            value = merge(under, value)
        merged[key] = value
    return merged
