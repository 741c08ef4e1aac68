"""Whether the workers fit: their number and mesh the batching, their GPUs the device."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpdist.config.running import Elastic
from tpdist.errors import ConfigError

if TYPE_CHECKING:
    from tpdist.config.experiment import Experiment


def misfits(config: "Experiment") -> Iterator[ConfigError]:
    """Of the numbers and the mesh, with the dotted key of each."""
    mesh, (fewest, most) = config.cluster.mesh, config.cluster.limits
    if fewest > most:
        yield ConfigError(f"min {fewest} is above max {most}; make it at most that", "cluster.workers.min")
        return
    if mesh is not None and isinstance(config.cluster.workers, Elastic):
        yield ConfigError(
            "a fixed mesh does not fit a number of workers that changes; leave it out, and it follows from the number",
            "cluster.mesh",
        )
        return
    if mesh is not None and mesh[0] * mesh[1] != most:
        yield ConfigError(
            f"{mesh[0]} x {mesh[1]} = {mesh[0] * mesh[1]} places for {most} workers; make them equal, or write null",
            "cluster.mesh",
        )
        return
    if 0 < config.cluster.gpus_per_worker < 0.0001:
        yield ConfigError(
            f"Ray gives no less than 0.0001 of a GPU, got {config.cluster.gpus_per_worker}", "cluster.gpus_per_worker"
        )
    if config.cluster.gpus_per_worker > 1 and config.cluster.gpus_per_worker % 1:
        yield ConfigError(
            f"Ray gives a part of one GPU or whole ones, got {config.cluster.gpus_per_worker}",
            "cluster.gpus_per_worker",
        )
    misfit = mesh_misfit(config, config.mesh(fewest))
    if misfit is not None:
        yield ConfigError(misfit, "cluster.workers" if mesh is None else "cluster.mesh")


def check_devices(config: "Experiment") -> None:
    """Under Ray a worker trains on the GPUs that are set aside for it, and without any on CPUs. Raises ConfigError."""
    gpus, device = config.cluster.gpus_per_worker, config.run.device
    if device == "cuda" and not gpus:
        raise ConfigError(
            f"workers under Ray have no GPU but those set aside, got {gpus:g}; write 1, or run.device: auto",
            "cluster.gpus_per_worker",
        )
    if device == "cpu" and gpus:
        raise ConfigError(
            f"a worker with GPUs trains on them, got {gpus:g} beside run.device: cpu; write 0, or run.device: auto",
            "cluster.gpus_per_worker",
        )


def mesh_misfit(config: "Experiment", mesh: tuple[int, int]) -> str | None:
    """Why so many workers along (stream, time) cannot share the streams and windows."""
    streams, times = mesh
    if streams > config.batching.streams:
        return (
            f"{streams} workers along stream share {config.batching.streams} streams; use at most that many, more "
            "batching.streams, or workers along time: mesh: [stream, time]"
        )
    if times > config.batching.blocks and config.batching.mode == "minibatch":
        return (
            f"{times} workers along time share windows of {config.batching.blocks} blocks; use at most that many, or "
            "more batching.blocks"
        )
    return None
