"""The loop on one worker, evaluation, checkpoints, tracking. Import its modules; this file loads nothing."""
