"""One frozen model per part of the YAML.

Words and symbols are those of the paper: S streams, B steps a block, K blocks a window, λ the penalty's
weight, h the targets (free states at the boundaries), ĥ the predictions, u the scaled duals.
"""

from os.path import expanduser
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, Strict

# not pydantic's, whose bound is "above 0": for a whole number "at least 1" reads better
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(gt=0, le=1e30)]  # what torch is to take as a float32, which ends at 3e38
Fraction = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[Text, AfterValidator(expanduser)]  # no shell fills in the `~` of a YAML file or of --set
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# YAML has lists only, so a list must pass for a tuple; what it holds stays strict
Mesh = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]
Packages = Annotated[tuple[Text, ...], Strict(False)]
Pair = Annotated[tuple[float, float], Strict(False)]
DUAL_METHODS = ("admm", "alm")  # values of `method.name`: those with a dual variable
BUILT_IN_CELLS = ("elman", "gru", "lstm", "mrnn")
BUILT_IN_PENALTIES = ("l2", "kl", "l2+kl")
OptimizerName = Literal["adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "sgd"]


class Part(BaseModel):
    """Frozen, no key but the declared ones, and no silent conversion: 2.5, "2" and true are not whole numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Synthetic(Part):
    """The hidden Markov source of recipe `synthetic`; its entropy rate, and so the best perplexity, is known."""

    types: Annotated[int, Field(ge=2)] = Field(default=64, description="number of token types")
    states: PositiveInt = Field(default=32, description="hidden states of the source")
    branching: Annotated[int, Field(ge=2)] = Field(default=4, description="token types that each hidden state can emit")
    tokens: Annotated[int, Field(ge=100)] = Field(
        default=200_000, description="training tokens; validation and test get a tenth each"
    )
    seed: NonNegativeInt = Field(default=0, description="seed of the source and of the sample")


class Data(Part):
    """Which corpus, and where its store lies."""

    recipe: Literal["ptb", "wikitext", "text8", "text", "python-docs", "synthetic"] = Field(
        default="python-docs", description="how the corpus is made; python-docs and synthetic need no files"
    )
    store: PathText | None = Field(
        default=None,
        description="the store's directory; default stores/<recipe>-<level>, of synthetic a name with its settings",
    )
    source: PathText | None = Field(
        default=None,
        description="ptb, wikitext: the directory of the text files; text8: the file; text: one file, cut 90/5/5",
    )
    train: PathText | None = Field(
        default=None, description="recipe text: the training file (text, or Parquet with a text column)"
    )
    valid: PathText | None = Field(default=None, description="recipe text: the validation file")
    test: PathText | None = Field(default=None, description="recipe text: the test file")
    column: Text = Field(default="text", description="the text column of a Parquet file")
    level: Literal["word", "char"] = Field(default="word", description="tokens are words or characters")
    max_types: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="keep this many of the most frequent types, <unk> and <eos> among them"
    )
    min_count: PositiveInt | None = Field(
        default=None, description="drop types rarer than this in the training split; default 1 (python-docs: 2)"
    )
    max_tokens: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="keep this many tokens of the training split, its first; the other splits stay whole"
    )
    synthetic: Synthetic = Field(default=Synthetic(), description="the source of recipe synthetic")


class Model(Part):
    """The recurrence g and the output f of Eq. 1-2."""

    cell: Text = Field(
        default="gru", description=f"{', '.join(BUILT_IN_CELLS)}, or an own cell as package.module:Class"
    )
    activation: Literal["logistic", "tanh", "identity"] | None = Field(
        default=None, description="elman and mrnn: the non-linearity; default logistic for elman, tanh for mrnn"
    )
    hidden: PositiveInt = Field(default=200, description="width of a layer's hidden state")
    layers: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="layers, one above the other; all their states are free"
    )
    embedding: PositiveInt | None = Field(default=None, description="width of the input embedding; default: hidden")
    tied: bool = Field(default=False, description="the head's matrix is the embedding's")
    init: Size | None = Field(
        default=None,
        description="draw every parameter from uniform(-init, init); default: cells as PyTorch does, the head's matrix "
        "±1/sqrt(hidden), the embedding ±0.1",
    )
    init_from: PathText | None = Field(
        default=None, description="a safetensors file to start from, with PyTorch's names or an export's; null: draw"
    )
    allow_cells_from: Packages = Field(default=(), description="packages that an own cell may be imported from")


class Objective(Part):
    """Eq. 6-8, summed over a window, in nats."""

    block: PositiveInt = Field(default=20, description="B, steps in a block")
    penalty: Text = Field(
        default="l2",
        description=f"C of Eq. 6: {', '.join(BUILT_IN_PENALTIES)}, or an own one as package.module:function",
    )
    weight: NonNegativeFloat = Field(default=0.1, description="λ, in the units of Eq. 7")
    kl_weight: NonNegativeFloat | None = Field(default=None, description="weight of the kl term; default: weight")
    weight_growth: PositiveFloat = Field(default=1.0, description="λ is multiplied by this after every epoch")
    loss_on: Literal["prediction", "target"] = Field(
        default="prediction", description="the loss at a boundary sits on ĥ (Eq. 6-7) or on h (Eq. 8)"
    )
    allow_penalties_from: Packages = Field(default=(), description="packages that an own penalty may be imported from")


class HOptimizer(Part):
    """The optimiser of the targets H."""

    name: OptimizerName = Field(default="sgd", description="torch.optim's class, in lower case")
    lr: Size | None = Field(
        default=None, description="default with sgd 1/λ: with starts held, one plain step is one costate sweep"
    )
    clip: Size | None = Field(default=None, description="largest norm of the gradient of one boundary's state")
    options: dict[str, float | bool | Pair] = Field(
        default={}, description="further arguments of the torch.optim class"
    )


class Dual(Part):
    """The dual step u ← u + α λ r, in Boyd's scaled form."""

    lr: PositiveFloat | None = Field(default=None, description="α; default 1/λ, Boyd's")
    clip: Size | None = Field(default=None, description="largest norm of λ r of one boundary")
    start_epoch: PositiveInt = Field(default=1, description="the first epoch with dual steps")
    keep: bool = Field(default=True, description="keep u from visit to visit; false zeroes it at every window")
    order: Literal["after", "before"] = Field(
        default="after", description="the dual step follows or precedes the θ-step"
    )


class Method(Part):
    """How H, θ and U are updated in one visit of a window."""

    name: Literal["bptt", "pm", "admm", "alm", "costate", "als"] = Field(
        default="admm",
        description="bptt: λ = 0; pm: no duals; admm: duals; alm: duals, H and θ jointly; costate: ours; als: least "
        "squares in turn",
    )
    h_steps: NonNegativeInt = Field(default=1, description="gradient steps on the targets a visit (pm, admm)")
    theta_steps: PositiveInt = Field(default=1, description="gradient steps on the parameters a visit")
    starts: Literal["tied", "held"] = Field(
        default="held",
        description="an H-step moves a block's start with its target (tied, the paper) or leaves it (held, ours)",
    )
    sweeps: NonNegativeInt | None = Field(
        default=None, description="costate sweeps a visit; default K-1, the whole window"
    )
    keep_costates: bool = Field(
        default=False, description="start the sweeps from the last visit's costates, not from 0"
    )
    first: Literal["zero", "one-block", "forward", "persistent"] = Field(
        default="forward",
        description="first values of the targets inside a window: 0; each block from 0; an exact roll-out; kept "
        "from the last visit",
    )
    relaxation: NonNegativeInt = Field(
        default=1,
        description="relaxation sweeps h ← ĥ after persistent first values, or before windows in random order",
    )
    edge: Literal["carry", "zero"] = Field(
        default="carry", description="the state at a window's start: as the window before left it, or 0"
    )
    edge_costate: Literal["zero", "kept"] = Field(
        default="zero",
        description="the costate at the end of a window in random order: 0, or as the last visit of the window behind "
        "it left it",
    )
    edge_free: bool = Field(
        default=False, description="optimise the state at a window's start too (the released program)"
    )
    closing: bool = Field(
        default=False, description="one more target, 0 at first, at the window's end (the released program)"
    )
    bounded: bool = Field(default=False, description="optimise z of h = tanh(z) in place of h")
    h_optimizer: HOptimizer = Field(default=HOptimizer(), description="how an H-step moves the targets")
    dual: Dual = Field(default=Dual(), description="the dual step (admm, alm)")
    visit: Text | None = Field(
        default=None, description="an own visit as package.module:function, in place of the built-in one"
    )
    allow_visits_from: Packages = Field(default=(), description="packages that an own visit may be imported from")

    @property
    def known_as(self) -> str:
        """What lines and tables call it: an own visit by its path."""
        return self.visit or self.name


class Batching(Part):
    """How the corpus is cut into minibatches."""

    mode: Literal["minibatch", "batch"] = Field(
        default="minibatch", description="batch: one window covers all of every stream"
    )
    streams: PositiveInt = Field(default=4, description="S, streams read side by side")
    blocks: PositiveInt = Field(default=8, description="K, blocks of every stream in a window; batch mode ignores it")
    order: Literal["sequential", "shuffled"] = Field(
        default="sequential", description="windows in order, or in random order, each from its stored state"
    )
    chunk_tokens: PositiveInt = Field(default=16_384, description="tokens of a window worked on at once; bounds memory")
    recompute: bool = Field(
        default=False,
        description="admm in batch mode: work the targets out again for the dual step; less memory, more time",
    )


class Decay(Part):
    """Lower the learning rate of θ when the validation loss stops falling, or from a set epoch on."""

    factor: Fraction = Field(default=0.5, description="multiply the learning rate by this")
    patience: NonNegativeInt = Field(default=0, description="epochs without gain that may pass first")
    start_epoch: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="lower it in this epoch and every later one, whatever the validation loss does"
    )


class Optimizer(Part):
    """The optimiser of the parameters θ."""

    name: OptimizerName = Field(default="adam", description="torch.optim's class, in lower case")
    lr: PositiveFloat = Field(default=0.003, description="learning rate of θ")
    clip: PositiveFloat | None = Field(default=0.5, description="largest norm of the θ-gradient; null: none")
    decay: Decay | None = Field(default=None, description="null: the learning rate stays as it is")
    options: dict[str, float | bool | Pair] = Field(
        default={}, description="further arguments of the torch.optim class"
    )
