"""Configuration: one frozen model per part of the YAML, and the loader. Imports neither torch nor ray."""

from tpdist.config.experiment import Experiment
from tpdist.config.loader import load_config
from tpdist.config.parts import (
    Batching,
    Cluster,
    Data,
    Decay,
    Dual,
    HOptimizer,
    Method,
    Model,
    Objective,
    Optimizer,
    Run,
    Synthetic,
)

__all__ = [
    "Batching",
    "Cluster",
    "Data",
    "Decay",
    "Dual",
    "Experiment",
    "HOptimizer",
    "Method",
    "Model",
    "Objective",
    "Optimizer",
    "Run",
    "Synthetic",
    "load_config",
]
