"""The benchmarks on one device: that they compare the same work, that they run, and what they write."""

import json
from pathlib import Path

import pytest
import torch

from tpdist.cli import main
from tpdist.config import Experiment
from tpdist.errors import TpdistError
from tpdist.experiments import measure
from tpdist.experiments.bench import BENCHES, arms, batch, checkpoint, evaluation, head, step, timeparallel
from tpdist.experiments.plain import CLIP, LR, PlainLoop, random_tokens
from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit

MIB = 2**20


def test_parts_are_timed_in_turns() -> None:
    calls: list[str] = []
    parts = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = measure.in_turns(parts, rounds=2, each=2, warm=1)
    assert calls == ["a", "b", *"aabb", *"aabb"]
    assert {name: len(values) for name, values in timings.items()} == {"a": 2, "b": 2}


def allocate(mebibytes: int) -> int:
    used = measure.Peak()
    data = torch.ones(mebibytes * MIB, dtype=torch.uint8)
    del data
    torch.ones(MIB, dtype=torch.uint8)
    return used.bytes()


def test_peak_memory_is_what_was_in_use_at_most() -> None:
    assert measure.in_own_process(allocate, 200) == pytest.approx(200 * MIB, rel=0.05)


def test_peak_memory_is_measured_on_linux_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROC", tmp_path / "proc")
    with pytest.raises(TpdistError, match="which only Linux has; run this bench there"):
        measure.Peak()


def test_the_plain_loop_takes_the_steps_of_bptt() -> None:
    """The peer and `method.name: bptt` are the same computation, so that their times may be compared."""
    B, S, types, hidden = 5, 3, 20, 8
    config = Experiment.model_validate(
        {"model": {"hidden": hidden}, "objective": {"block": B}, "method": {"name": "bptt"},
         "batching": {"streams": S, "blocks": 1}, "optimizer": {"lr": LR, "clip": CLIP}}
    )  # fmt: skip
    model = build_model(config.model, config.run, types)
    loop = PlainLoop(types, hidden, S)
    with torch.no_grad():
        for theirs, ours in ((loop.embedding, model.embedding), (loop.rnn, model.layers[0].rnn)):
            theirs.load_state_dict(ours.state_dict())  # type: ignore[union-attr]
        loop.head.weight.copy_(model.weight)
        loop.head.bias.copy_(model.bias)
    plan, theta = plan_epoch(config, 1, 1), Theta(model, config.optimizer)
    carried = model.zero_state(S)
    for number in range(3):
        inputs, labels = random_tokens(types, 2, B, S, seed=number)
        window = make_window(inputs[:, :, None], labels[:, :, None], torch.float32, tokens=B * S, opens=False)
        outcome = visit(model, plan, theta, window, 0, Boundaries(), carried, Alone())
        carried = outcome.carry
        torch.testing.assert_close(outcome.loss.float() / (B * S), loop.update(inputs, labels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loop.state[0], carried, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loop.head.weight, model.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "bench", ["step", "arms", "head", pytest.param("batch", marks=pytest.mark.slow), "evaluation", "timeparallel"]
)
def test_they_run_and_name_their_ratios(bench: str, tmp_path: Path) -> None:
    said: list[str] = []
    found, wanted = {
        "step": (
            lambda: step.bench(said.append, types=30, hidden=8, rounds=1),
            {"bptt_over_plain", "admm_over_plain", "floor_over_plain"},
        ),
        "arms": (
            lambda: arms.bench(said.append, types=30, hidden=8, rounds=1),
            {"window_over_bptt", "ours_over_bptt", "blocks_over_bptt"},
        ),
        "head": (
            lambda: head.bench(said.append, types=50, hidden=8, many=2_000, rounds=1),
            {"time", "time_640", "floor", "floor_640", "memory"},
        ),
        "batch": (
            lambda: batch.bench(said.append, types=50, hidden=8, tokens=2_000, grown=(20_000, 200_000), rounds=1),
            {"batch_matmul_share", "recomputed_over_kept", "memory_growth", "memory_growth_kept"},
        ),
        "evaluation": (
            lambda: evaluation.bench(said.append, types=50, hidden=8, tokens=3_001, rounds=1),
            {"evaluation_time", "evaluation_share"},
        ),
        "timeparallel": (
            lambda: timeparallel.bench(said.append, hidden=8, lengths=(256, 512), rounds=1),
            {"speedup_512", "error_512", "strong_efficiency_2"},
        ),
    }[bench]
    report = json.loads(json.dumps(found()))
    assert wanted <= report["ratios"].keys()
    assert all(value > 0 for value in report["ratios"].values())
    assert {"bench", "machine", "config", "timings", "ratios"} <= report.keys()
    assert all(any(line.startswith(name) for line in said) for name in wanted)


def test_a_checkpoint_is_saved_in_every_second_slice() -> None:
    said: list[str] = []
    found = checkpoint.bench(said.append, types=40, hidden=8, seconds=0.2, pairs=2)
    assert len(found["timings"]["with"]) == len(found["timings"]["without"]) == 2
    speeds = zip(*found["timings"].values(), strict=True)
    assert found["ratios"]["least"] in [1 - after / before for before, after in speeds]
    assert found["config"]["bytes"] > 4 * 3 * 2 * 40 * 8  # embedding and head, with two moments of Adam's each


def test_the_command_writes_what_the_benchmark_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "bench", lambda say, device: {"device": device})
    assert main(["bench", "step", "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"device": "cpu"}


def test_lengths_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert timeparallel.powers_up_to(4096) == (1024, 2048, 4096)
    assert main(["bench", "timeparallel", "--longest", "5000"]) == 2
    assert capsys.readouterr().err == "tpdist: --longest: must be a power of 2, at least 1024; got 5000\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "head", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "tpdist: --device: torch sees no CUDA device here; write cpu\n"


def test_the_list_of_benchmarks_is_that_of_their_files() -> None:
    files = {path.stem for path in Path(str(step.__file__)).parent.glob("*.py")}
    assert files == {"__init__", "scaling", *BENCHES}
