"""The counters of a run, as a checkpoint keeps them."""

from tpdist.training.state import EpochSums, RunState


def test_sums_of_residuals_are_read_by_their_name_of_before() -> None:
    state = RunState(step=3, sums=EpochSums(loss=2.0, residuals=[1.5, 0.25]))
    kept = state.to_json()
    assert RunState.from_json(kept) == state
    kept["sums"]["gaps"] = kept["sums"].pop("residuals")
    assert RunState.from_json(kept) == state
