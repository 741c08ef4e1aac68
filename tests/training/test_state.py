"""The counters of a run, as a checkpoint keeps them."""

from tpdist.training.state import EpochSums, RunState


def test_sums_of_residuals_are_read_by_their_name_of_before() -> None:
    state = RunState(step=3, sums=EpochSums(loss=2.0, residuals=[1.5, 0.25]))
    kept = state.to_json()
    assert RunState.from_json(kept) == state
    kept["sums"]["gaps"] = kept["sums"].pop("residuals")
    assert RunState.from_json(kept) == state


def test_what_is_known_of_the_best_epoch_is_forgotten_as_a_whole() -> None:
    """Epochs without gain too: there is nothing that they fall behind."""
    state = RunState(epoch=5, step=36, best=1.5, best_epoch=2, best_step=18, best_train=1.2, stale=2, decay_wait=1)
    state.forget_best()
    assert state == RunState(epoch=5, step=36)
