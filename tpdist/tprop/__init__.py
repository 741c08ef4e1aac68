"""The method: objective, penalties, free states, H-steps, duals, costates. Tensors in, tensors out."""

from tpdist.tprop.als import als_visit
from tpdist.tprop.captured import Captured, CudaGraphs
from tpdist.tprop.objective import blocks_pass
from tpdist.tprop.outcome import Outcome, by_place
from tpdist.tprop.plan import Plan, own_function, plan_epoch
from tpdist.tprop.prediction import at_boundaries
from tpdist.tprop.states import Boundaries, first_values, keep
from tpdist.tprop.theta import BlowUpError, Theta
from tpdist.tprop.visit import visit
from tpdist.tprop.window import Alone, Neighbours, Window, make_window

__all__ = [
    "Alone",
    "BlowUpError",
    "Boundaries",
    "Captured",
    "CudaGraphs",
    "Neighbours",
    "Outcome",
    "Plan",
    "Theta",
    "Window",
    "als_visit",
    "at_boundaries",
    "blocks_pass",
    "by_place",
    "first_values",
    "keep",
    "make_window",
    "own_function",
    "plan_epoch",
    "visit",
]
