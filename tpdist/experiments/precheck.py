"""What settings of a sweep would fail on, as far as that can be seen before any of them runs."""

from collections.abc import Sequence

import torch

from tpdist.config import with_place
from tpdist.data import Tokens, is_missing, open_or_prepare
from tpdist.errors import ConfigError
from tpdist.experiments.points import Point
from tpdist.launch.local import check_gpus
from tpdist.models import imported
from tpdist.parallel import Workers
from tpdist.tprop import own_function, plan_epoch
from tpdist.training.batches import Batches
from tpdist.training.checks import pick_device, try_optimizers


def faults(points: Sequence[Point], here: bool) -> dict[tuple[str, str], ConfigError]:
    """By setting: no such device, too few GPUs, own code that cannot be loaded, options that its optimiser refuses, a
    corpus too short for its windows.

    here: whether they would run on this machine. Of a store that is missing nothing is known.
    """
    found = {}
    corpora: dict[str, Tokens | None] = {}  # opening one reads all of it
    cpu, place = torch.device("cpu"), Workers.alone().place
    for setting, config in {point.setting: point.config for point in points}.items():
        try:
            if here:
                pick_device(config)
                check_gpus(config)
                if ":" in config.model.cell:
                    imported(config.model.cell, "model.cell")
                own_function(config.method.visit, "method.visit")
            try_optimizers(config, plan_epoch(config, 1, config.batching.blocks), cpu)
            corpus = config.data.model_dump_json()
            if corpus not in corpora:
                corpora[corpus] = None if is_missing(config.data) else open_or_prepare(config.data).tokens("train")
            if (tokens := corpora[corpus]) is not None:
                Batches(config, tokens, place, cpu, torch.float32)
        except ConfigError as error:
            found[setting] = with_place(error, config)
    return found
