"""The parts of the YAML that are not the method: how a run runs, and on how many workers."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, Strict, Tag

from tpdist.config.parts import NAME_PATTERN, Mesh, NonNegativeInt, Part, PathText, PositiveInt


class Run(Part):
    """Everything about a run that is not the method."""

    name: str = Field(default="run", pattern=NAME_PATTERN, description="names the run directory")
    seed: NonNegativeInt = Field(default=0, description="of the first parameters and of the random order of windows")
    epochs: PositiveInt = Field(default=5, description="passes over the training split")
    patience: PositiveInt | None = Field(
        default=None, description="stop after this many epochs without gain on validation"
    )
    dtype: Literal["float32", "float64", "bfloat16"] = Field(
        default="float32",
        description="bfloat16: matrix products only, on a GPU not gru's and lstm's; states and parameters stay float32",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    tf32: bool = Field(
        default=False, description="on a GPU: float32 matrix products from factors rounded to 10 bits, which is faster"
    )
    cuda_graph: bool | None = Field(
        default=None,
        description="on a GPU: an update is one CUDA graph, which the host launches at once; null: where that is "
        "known to compute the same",
    )
    profile: PositiveInt | None = Field(
        default=None, description="updates in a timeline that every worker writes; what `--profile` sets to 5"
    )
    deterministic: bool = Field(default=False, description="only kernels that repeat to the bit")
    on_non_finite: Literal["stop", "skip"] = Field(
        default="stop", description="where a loss, a residual or a gradient is not finite: end, or leave the update out"
    )
    skip_in_row: PositiveInt = Field(default=10, description="skip: updates left out in a row before the run stops")
    check_every: PositiveInt = Field(default=100, description="updates between two comparisons of θ over all workers")
    log_every: PositiveInt = Field(default=100, description="updates between two lines in metrics.jsonl")
    track: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], Strict(False)] = Field(
        default=("tensorboard",), description="who gets the rows of metrics.jsonl too; mlflow and wandb are extras"
    )
    checkpoint_every: PositiveInt | None = Field(
        default=None, description="updates between checkpoints; always one an epoch"
    )
    checkpoint_every_s: PositiveFloat | None = Field(
        default=None, description="seconds between checkpoints, beside checkpoint_every"
    )
    checkpoint_to: PathText | None = Field(
        default=None,
        description="a directory or a URI (s3://, gs://, file://, …) for checkpoints, in place of the run's own; "
        "the run's go into DIR/<name of the run directory>",
    )
    keep_last: PositiveInt = Field(default=2, description="checkpoints kept, the newest")
    test: bool = Field(default=True, description="evaluate the best model on the test split at the end")
    keep_best: bool = Field(default=False, description="keep the checkpoint of the best epoch too")


class Elastic(Part):
    """Between `min` and `max` workers, as the cluster has room."""

    min: PositiveInt = Field(
        le=1_000_000, description="fewest workers: the run waits for them, and ends if fewer are left"
    )
    max: PositiveInt = Field(le=1_000_000, description="most workers: the run grows to so many, at the end of an epoch")


UNION_TAG = "= "  # begins the names of a union's members, which pydantic puts into the place of an error
Count = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000), Tag(UNION_TAG + "number")] | Annotated[Elastic, Tag(UNION_TAG + "range")],
    Discriminator(lambda value: UNION_TAG + ("range" if isinstance(value, dict | Elastic) else "number")),
]


class Cluster(Part):
    """Workers and their mesh."""

    workers: Count = Field(
        default=1, description="how many; each owns its own blocks. {min: 2, max: 8}: as many as there is room for"
    )
    mesh: Mesh | None = Field(default=None, description="[stream, time]; their product is workers")
    cpus_per_worker: float = Field(
        default=1.0, ge=0.0001, description="CPUs that Ray sets aside for a worker; its threads"
    )
    gpus_per_worker: NonNegativeFloat = Field(default=0.0, description="GPUs of a worker; 0.25 puts four on one GPU")
    gradient_dtype: Literal["bfloat16"] | None = Field(
        default=None, description="send θ's gradient in this, rounded; null: in its own"
    )
    wait_s: NonNegativeFloat = Field(default=60.0, description="seconds to wait for a cluster with room")
    heartbeat_s: PositiveFloat = Field(
        default=15.0, description="a worker that gives no sign for so many seconds is ended and replaced"
    )
    rejoin_s: NonNegativeFloat = Field(
        default=20.0, description="seconds to wait for room for a lost worker before going on with fewer"
    )
    max_restarts: NonNegativeInt = Field(
        default=10, description="most failures within restart_window_s that are mended"
    )
    restart_window_s: PositiveFloat = Field(
        default=3600.0, description="only failures of the last so many seconds count"
    )
    exchange_s: PositiveFloat = Field(
        default=1800.0,
        le=1e9,  # the clock of torch's timeouts ends some way beyond
        description="longest that a worker waits for the others, in seconds; must exceed an evaluation",
    )

    @property
    def limits(self) -> tuple[int, int]:
        """Fewest and most workers."""
        workers = self.workers
        return (workers.min, workers.max) if isinstance(workers, Elastic) else (workers, workers)
