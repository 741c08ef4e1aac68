"""Where workers are started: here, in this process."""

from tpdist.launch.local import evaluate, resume, sample, train

__all__ = ["evaluate", "resume", "sample", "train"]
