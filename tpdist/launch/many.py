"""One run on many workers under Ray, from the driver's side."""

import os
from pathlib import Path

from tpdist.config import Experiment
from tpdist.data import Store
from tpdist.errors import ConfigError, Interrupted
from tpdist.launch.cluster import connected
from tpdist.launch.controller import Controller
from tpdist.launch.crew import WorkerFailedError
from tpdist.launch.messages import Job
from tpdist.training.batches import crew_sizes
from tpdist.training.depots import forget, has_checkpoints
from tpdist.training.progress import Reporter
from tpdist.training.result import Result
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal


def run_on_workers(
    config: Experiment,
    store: Store,
    run: RunDirectory,
    reporter: Reporter,
    resumed_with: tuple[str, ...] | None,
    address: str | None,
) -> Result:
    """Train on `cluster.workers` actors of the cluster at `address`, or of an embedded one.

    Run directory and store must be seen by all nodes under the same path. resumed_with: the overrides of a run that
    goes on; None for a new one, whose directory is removed where it never took a step.
    """
    cluster = config.cluster
    job = Job(
        run=str(run.path.absolute()),
        store=str(Path(store.directory).absolute()),
        overrides=resumed_with or (),
        directory=os.getcwd(),
        resume=resumed_with is not None,
        threads=max(1, int(cluster.cpus_per_worker)),
        address=address,
    )
    stop = StopSignal()
    try:
        sizes = crew_sizes(config, len(store.tokens("train")))
    except ConfigError:
        if resumed_with is None:
            forget(config, run)
        raise
    controller = Controller(job, cluster, sizes, reporter, stop)
    try:
        with connected(address, cluster.limits[1] * cluster.cpus_per_worker, reporter), stop:
            return Result(**controller.run())
    except BaseException as error:
        worth_reading = controller.crew.began or isinstance(error, WorkerFailedError)  # metrics, the workers' logs
        if not worth_reading and resumed_with is None and not has_checkpoints(config, run):
            forget(config, run)
        elif isinstance(error, KeyboardInterrupt):  # the second; the first lets the workers save
            raise Interrupted(f"stopped at once. {controller.how_to_go_on()}") from error
        if isinstance(error, SystemExit):  # Ray's answer to SIGTERM, before ours is there
            raise Interrupted("stopped while Ray was starting") from error
        raise
