"""What the commands of training mean: train, resume. One worker runs in this process, many run under Ray."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tpdist.config import Experiment, with_place
from tpdist.config.workers import check_devices
from tpdist.data import Store, default_store, is_missing, open_or_prepare
from tpdist.data import dry_run as dry_run_of_store
from tpdist.data.disk import unwritable
from tpdist.data.prepare import Report
from tpdist.errors import ConfigError, RunError, TpdistError
from tpdist.launch.placement import Node
from tpdist.models import build_model
from tpdist.parallel import Workers
from tpdist.tprop import own_function, plan_epoch
from tpdist.training.batches import crew_sizes
from tpdist.training.changes import differences, text
from tpdist.training.checkpoints import load_checkpoint
from tpdist.training.checks import pick_device, settings_kept, try_optimizers
from tpdist.training.depots import check_place, depot_for
from tpdist.training.interchange import start_from
from tpdist.training.progress import Reporter, Silent
from tpdist.training.result import Result
from tpdist.training.run_dir import RunDirectory, with_absolute_paths
from tpdist.training.snapshot import restore
from tpdist.training.summary import introduction
from tpdist.training.trackers import check_installed
from tpdist.training.trainer import Trainer
from tpdist.training.worker import refuse_occupied, run_worker


def train(
    config: Experiment,
    run_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    data_progress: Report | None = None,
    address: str | None = None,
) -> Result:
    """Train a new run and write its directory (default `runs/<name>-<time>`); a missing store is prepared first.

    address: of a Ray cluster, `auto` or host:port; None starts an embedded one where `cluster.workers` asks for it.

    Raises ConfigError, DataError, RunError for input that does not do; NonFiniteError; Interrupted.
    """
    if not isinstance(config, Experiment):
        raise TpdistError(f"config: must be an Experiment, got {config!r:.80}; give tpdist.load_config(FILE)")
    if run_dir is not None:
        RunDirectory(Path(run_dir)).refuse_existing()
    with_absolute_paths(config, Path.cwd())  # refuses those that could not be read again, before anything is made
    with _at_work(config, reporter, address):
        if address is None and is_missing(config.data):  # preparing may take long; code may lie on the cluster alone
            try_without_store(config)
        store = open_or_prepare(config.data, data_progress)
        if under_ray(config, address):
            import tpdist.launch.many  # noqa: F401 - now: it takes seconds, and Ctrl-C shall leave no directory behind
        run = RunDirectory.create(config, run_dir)
        return _run(config, store, run, reporter or Silent(), None, address)


def dry_run(
    config: Experiment | None, run_dir: str | Path | None, overrides: Sequence[str] = (), address: str | None = None
) -> list[str]:
    """What a run would be: the lines that it begins with. Everything is checked as for the run; nothing is written.

    config: None for the run in `run_dir`, which goes on with `overrides`.
    """
    going_on = config is None
    run = RunDirectory(Path(run_dir or "runs/NAME-TIME")) if config else RunDirectory.open(str(run_dir))
    if config is None:
        config = run.load_config(overrides)
    else:
        if run_dir is not None:
            run.refuse_existing()
        with_absolute_paths(config, Path.cwd())
    many = under_ray(config, address)
    with _at_work(config, None, address):
        check_installed(config)
        if why := unwritable(run.path):
            raise RunError(f"{run.path}: cannot be {'written' if going_on else 'made'}: {why}")
        check_place(config, run)
        depot, said = depot_for(config, run), []
        if not going_on:
            refuse_occupied(depot)
        if is_missing(config.data):
            prepared = dry_run_of_store(config.data, default_store(config.data))
            try_without_store(config)
            missing = "the store is missing and would be prepared first:"
            return [missing, *prepared, "what depends on it is checked once it is there"]
        store = open_or_prepare(config.data)
        # an update of windows of workers' own spans covers as many as there are: at most as many as fit
        sizes = crew_sizes(config, len(store.tokens("train")))
        first = Workers.first_of(config.mesh(sizes[-1]))
        trainer = Trainer(config, store, run, Silent(), first, torch.device("cpu") if many else None)
        if going_on:
            loaded = load_checkpoint(depot, said.append)
            restore(trainer, loaded)
            said.append(f"would go on from {loaded.name}")
            if changed := differences(run, config, trainer.state.epoch, trainer.state.step):
                said.append(f"would change from there on: {', '.join(map(text, changed))}")
            if trainer.over:
                return [*introduction(trainer), *said, f"nothing is left to train; for more: {trainer.for_more}"]
        elif config.model.init_from is not None:
            start_from(trainer.model, config.model.init_from, trainer.store.vocabulary)
        lines = introduction(trainer, ("cuda" if config.cluster.gpus_per_worker else "cpu") if many else None)
        if len(sizes) > 1:
            lines.append(f"{sizes[0]} to {sizes[-1]} workers as they come and go")
        lines += said
        epochs = config.run.epochs
        updates = f"{epochs * len(trainer.batches):,} updates in {epochs} epoch{'s' if epochs > 1 else ''}"
        left = (epochs + 1 - trainer.state.epoch) * len(trainer.batches) - trainer.state.position
        return [*lines, f"{left:,} more of {updates}" if going_on else updates]


def try_without_store(config: Experiment) -> None:
    """What may be wrong whatever the corpus: options that torch refuses, code of one's own. Raises ConfigError."""
    try_optimizers(config, plan_epoch(config, 1, config.batching.blocks), torch.device("cpu"))
    build_model(config.model, config.run, types=2)  # as few as a store can have
    own_function(config.method.visit, "method.visit")


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
    data_progress: Report | None = None,
    address: str | None = None,
) -> Result:
    """Continue a run from its newest checkpoint, to the same numbers as an uninterrupted run.

    overrides: changes of its configuration, such as `run.epochs=20`, which then stay with the run; the model and
    the corpus must stay. The number of workers and their mesh may change. address: as of `train`.

    Raises RunError where there is no run, no whole checkpoint, or one that does not fit; else as `train` does.
    """
    run = RunDirectory.open(run_dir)
    overrides = [overrides] if isinstance(overrides, str) else overrides
    config = run.load_config(overrides)
    with _at_work(config, reporter, address):
        store = open_or_prepare(config.data, data_progress)
        return _run(config, store, run, reporter or Silent(), tuple(overrides), address)


def _run(
    config: Experiment,
    store: Store,
    run: RunDirectory,
    reporter: Reporter,
    resumed_with: tuple[str, ...] | None,
    address: str | None,
) -> Result:
    """Here or under Ray. resumed_with: the overrides of a run that goes on; None for a new one."""
    if under_ray(config, address):
        from tpdist.launch.many import run_on_workers  # ray takes seconds to import

        return run_on_workers(config, store, run, reporter, resumed_with, address)
    result = run_worker(config, store, run, reporter, resumed_with is not None)
    assert result is not None  # one worker leads
    return result


def under_ray(config: Experiment, address: str | None) -> bool:
    """Whether workers are actors, who look for a device where they are, and not this process."""
    return config.cluster.limits[1] > 1 or address is not None


@contextmanager
def _at_work(config: Experiment, reporter: Reporter | None, address: str | None) -> Iterator[None]:
    """Checks before a run; afterwards torch's settings are as they were, and errors know their place in the file."""
    try:
        with settings_kept():
            if address is None:
                pick_device(config)
            if under_ray(config, address):
                check_devices(config)
                if address is None:
                    check_gpus(config)
            yield
    except ConfigError as error:
        raise with_place(error, config) from error
    finally:
        if reporter is not None:
            reporter.close()


def check_gpus(config: Experiment) -> None:
    """An embedded Ray has this machine's GPUs and no others will come. Raises ConfigError where they are too few."""
    fewest, each, here = config.cluster.limits[0], config.cluster.gpus_per_worker, torch.cuda.device_count()
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()  # by the program itself, to its cluster
    if each and not connected and Node("", "", 0.0, float(here)).room(0.0, each) < fewest:
        workers = f"{fewest} workers with {each:g} each do" if fewest > 1 else f"a worker with {each:g} does"
        raise ConfigError(
            f"this machine has {here} GPU{'' if here == 1 else 's'}, where {workers} not fit; write less, or give "
            "--address of a cluster that has them",
            "cluster.gpus_per_worker",
        )
