"""`tpdist bench arms`: an update of each arm of the contests of RESULTS.md against one of BPTT truncated at B.

All read as many tokens, so the ratios are those of an epoch's updates too. How many steps wait for each other differs:
on a GPU that counts, on a CPU hardly.
"""

from typing import Any

from tpdist.experiments.bench.step import EACH, ROUNDS, STEPS, STREAMS, updater
from tpdist.experiments.measure import Say, in_turns, medians, print_timings, report
from tpdist.tprop.captured import WARM

WINDOW = 4  # blocks of ours; BPTT through the window takes them as one
STREAMS_OF_WINDOWS, STREAMS_OF_BLOCKS = 2 * STREAMS, 2 * STREAMS * WINDOW
STORED = {"name": "costate", "first": "persistent"}
ARMS: dict[str, dict[str, Any]] = {
    "bptt": {"method": {"name": "bptt"}, "streams": STREAMS_OF_BLOCKS, "blocks": 1},
    "window": {"method": {"name": "bptt"}, "streams": STREAMS_OF_WINDOWS, "blocks": 1, "steps": WINDOW * STEPS},
    "ours": {
        "method": {**STORED, "relaxation": WINDOW - 1},
        "streams": STREAMS_OF_WINDOWS,
        "blocks": WINDOW,
        "order": "shuffled",
    },
    "blocks": {
        "method": {**STORED, "relaxation": 1, "sweeps": 0},
        "streams": STREAMS_OF_BLOCKS,
        "blocks": 1,
        "order": "shuffled",
    },
}
ARMS["blocks_kept"] = {**ARMS["blocks"], "method": {**ARMS["blocks"]["method"], "edge_costate": "kept"}}


def bench(
    say: Say, device: str = "cpu", types: int = 10_000, hidden: int = 200, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Interleaved updates of 640 tokens, by Adam; CUDA graphs on a GPU. Ratios are of time."""
    graphs = say if device == "cuda" else None
    parts = {name: updater(device, types, hidden, **arm, say=graphs) for name, arm in ARMS.items()}
    timings = in_turns(parts, rounds, device, EACH[device], warm=WARM + 1)
    print_timings(timings, say)
    time = medians(timings)
    ratios = {f"{name}_over_bptt": time[name] / time["bptt"] for name in ARMS if name != "bptt"}
    config = {"types": types, "hidden": hidden, "arms": ARMS, "updates a timing": EACH[device]}
    return report("arms", device, config, timings, ratios, say)
