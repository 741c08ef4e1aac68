"""The method: objective, penalties, free states, H-steps, duals, costates. Tensors in, tensors out."""

from tpdist.tprop.als import als_visit
from tpdist.tprop.outcome import Outcome
from tpdist.tprop.plan import Plan, plan_epoch
from tpdist.tprop.states import Boundaries
from tpdist.tprop.theta import BlowUpError, Theta
from tpdist.tprop.visit import visit
from tpdist.tprop.window import Alone, Neighbours, Window, make_window

__all__ = [
    "Alone",
    "BlowUpError",
    "Boundaries",
    "Neighbours",
    "Outcome",
    "Plan",
    "Theta",
    "Window",
    "als_visit",
    "make_window",
    "plan_epoch",
    "visit",
]
