"""`tpdist bench`: its benchmarks, each a module here of that name with a function `bench`, and `scaling`.

This file loads none of them.
"""

BENCHES = {
    "step": "an update against that of a plain loop of nn.GRU, nn.Linear, cross_entropy",
    "arms": "an update of every arm of the contests against one of truncated BPTT",
    "head": "the output head against linear + cross_entropy, time and memory",
    "batch": "batch mode against the machine's own matrix products; how its memory grows",
    "overlap": "the share of a step that 2 workers wait for each other",
    "checkpoint": "what a checkpoint every 30 s costs",
    "evaluation": "a split's perplexity, pieces side by side, against one after another",
    "timeparallel": "one gradient over a long text, all blocks at once, against BPTT",
}
