"""Configuration: one frozen model per part of the YAML, and the loader. Imports neither torch nor ray."""

from tpdist.config.experiment import Experiment
from tpdist.config.graphs import records_updates
from tpdist.config.keys import path_keys
from tpdist.config.loader import keeps, load_config, with_place
from tpdist.config.parts import (
    BUILT_IN_CELLS,
    BUILT_IN_PENALTIES,
    DUAL_METHODS,
    Data,
    Decay,
    Model,
    Optimizer,
    Synthetic,
)
from tpdist.config.running import Cluster, Run
from tpdist.config.show import json_schema, to_yaml
from tpdist.config.sweep import Arm, Draw, Sweep
from tpdist.config.unread import RECIPES_READ, unread, unread_by_all

__all__ = [
    "BUILT_IN_CELLS",
    "BUILT_IN_PENALTIES",
    "DUAL_METHODS",
    "RECIPES_READ",
    "Arm",
    "Cluster",
    "Data",
    "Decay",
    "Draw",
    "Experiment",
    "Model",
    "Optimizer",
    "Run",
    "Sweep",
    "Synthetic",
    "json_schema",
    "keeps",
    "load_config",
    "path_keys",
    "records_updates",
    "to_yaml",
    "unread",
    "unread_by_all",
    "with_place",
]
