"""The plain loop by itself: python tests/benchmarks/plain_bptt.py [--device cuda] [--updates 100]

Truncated BPTT as people write it by hand (tpdist/experiments/plain.py), on random tokens. `tpdist bench step` runs it
beside tpdist's own update, in turns.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tpdist.experiments.plain import PlainLoop, random_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--types", type=int, default=10_000)
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps of a window")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--fused", action="store_true", help="Adam as one kernel")
    options = parser.parse_args()
    loop = PlainLoop(options.types, options.hidden, options.streams, options.device, fused=options.fused)
    inputs, labels = random_tokens(options.types, 2, options.steps, options.streams, device=options.device)
    loop.update(inputs, labels)
    _wait(options.device)
    began = time.perf_counter()
    for _ in range(options.updates):
        loss = loop.update(inputs, labels)
    _wait(options.device)
    seconds = time.perf_counter() - began
    tokens = options.updates * inputs.numel()
    print(f"{tokens:,} tokens in {seconds:.2f} s: {tokens / seconds:,.0f} tokens/s; loss {float(loss):.3f}")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
