"""Exports are loaded by plain PyTorch, and runs start from what plain PyTorch wrote."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import interrupted, small, stop_at
from torch import nn

import tpdist
from tpdist import ConfigError, RunError, TpdistError
from tpdist.cli import main
from tpdist.config import Experiment
from tpdist.data import Vocabulary
from tpdist.models import LanguageModel, build_model
from tpdist.training.interchange import Step, export_model, start_from, to_plain

WORDS = Vocabulary(["the", "<eos>", "of", "a", "value", "is", "<unk>"], [9, 8, 7, 6, 5, 4, 3], "word")
MODELS: list[dict[str, Any]] = [
    {"cell": "gru"},
    {"cell": "gru", "layers": 3, "embedding": 4},
    {"cell": "lstm"},
    {"cell": "lstm", "layers": 2, "tied": True},
]


def made(**model: Any) -> tuple[Experiment, LanguageModel]:
    config = small("store", model={"hidden": 5, "init": 0.9, **model})
    return config, build_model(config.model, config.run, len(WORDS))


def run_card(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The code in the model card, as it stands, run beside it; what it defines."""
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) < 30
    assert "tpdist" not in code
    monkeypatch.chdir(directory)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_plain_pytorch_computes_the_same(model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, ours = made(**model)
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp/step.onnx").write_text("of an export that was killed")
    export_model(ours, WORDS, config, {"epoch": 1}, tmp_path / "out")
    assert not (tmp_path / "out/step.onnx").exists()
    theirs = run_card(tmp_path / "out", monkeypatch)["model"]
    tokens = torch.randint(len(WORDS), (11, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h, _ = ours.unroll(tokens, ours.zero_state(3))
        logits, _ = theirs(tokens)
    assert (ours.logits(h) - logits).abs().max() <= 1e-6
    assert logits.std() > 0.1


@pytest.mark.parametrize("model", [*MODELS, {"cell": "mrnn", "layers": 2}, {"cell": "elman"}], ids=str)
def test_a_run_starts_from_an_export(model: dict[str, Any], tmp_path: Path):
    config, source = made(**model)
    export_model(source, WORDS, config, {"epoch": 1}, tmp_path / "out")
    _, other = made(**model, init=0.1)
    start_from(other, str(tmp_path / "out/model.safetensors"), WORDS)
    for (name, one), two in zip(source.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


class WordLanguageModel(nn.Module):
    """Its parameters have the names of PyTorch's example `word_language_model`."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int, layers: int):
        super().__init__()
        self.encoder = nn.Embedding(len(WORDS), hidden)
        self.rnn = kind(hidden, hidden, layers)
        self.decoder = nn.Linear(hidden, len(WORDS))


@pytest.mark.parametrize(("cell", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_a_run_starts_from_plain_pytorch(cell: str, kind: type[nn.RNNBase], tmp_path: Path):
    theirs = WordLanguageModel(kind, 5, 2)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    _, ours = made(cell=cell, layers=2)
    start_from(ours, str(tmp_path / "theirs.safetensors"), WORDS)
    tokens = torch.tensor([[0, 1], [2, 3], [4, 5]])
    with torch.no_grad():
        h, _ = ours.unroll(tokens, ours.zero_state(2))
        expected = theirs.decoder(theirs.rnn(theirs.encoder(tokens))[0])
    torch.testing.assert_close(ours.logits(h), expected, atol=1e-6, rtol=0)
    assert to_plain(ours).keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("kept", ["encoder.weight", "decoder.weight"])
def test_a_tied_matrix_may_be_there_once(kept: str, tmp_path: Path):
    _, source = made(tied=True)
    tensors = to_plain(source)
    dropped = ({"encoder.weight", "decoder.weight"} - {kept}).pop()
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, tmp_path / "m.safetensors")
    _, other = made(tied=True, init=0.1)
    start_from(other, str(tmp_path / "m.safetensors"), WORDS)
    assert torch.equal(other.weight, source.weight)


def test_what_cannot_be_started_from(tmp_path: Path):
    config, source = made()
    export_model(source, WORDS, config, {"epoch": 1}, tmp_path / "out")
    file = str(tmp_path / "out/model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.init_from: .*: rnn\.bias_hh_l1 is absent there and \(15,\) in"):
        start_from(made(layers=2)[1], file, WORDS)
    with pytest.raises(ConfigError, match=r"vocabulary\.json: is another vocabulary than the corpus's"):
        start_from(source, file, Vocabulary(WORDS.types[::-1], WORDS.counts, "word"))
    with pytest.raises(ConfigError, match=r"its decoder\.weight is not its encoder\.weight"):
        start_from(made(tied=True)[1], file, WORDS)
    with pytest.raises(ConfigError, match=r"model\.init_from: no\.safetensors: missing; give a safetensors file"):
        start_from(source, "no.safetensors", WORDS)
    with pytest.raises(ConfigError, match=r"out: is a directory; give .*out/model\.safetensors, which is in it$"):
        start_from(source, str(tmp_path / "out"), WORDS)
    with pytest.raises(ConfigError, match=r": is a directory; give a safetensors file, such as an export's$"):
        start_from(source, str(tmp_path), WORDS)
    (tmp_path / "out/vocabulary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"vocabulary\.json: is no vocabulary of an export: Expecting property name"):
        start_from(source, file, WORDS)
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        start_from(source, str(tmp_path / "text.safetensors"), WORDS)


def test_export_of_a_run_and_a_run_from_it(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    result = tpdist.train(small(small_corpus), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    listed = "README.md, config.json, model.safetensors, vocabulary.json"
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: {listed}\n"
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert f"| validation perplexity | {result.valid_perplexity:.2f} |" in card
    assert f"| test perplexity | {result.test_perplexity:.2f} |" in card
    run_card(tmp_path / "out", monkeypatch)

    # a step so small that it changes nothing: the new run's model is the exported one
    monkeypatch.chdir(tmp_path)
    still = small(
        small_corpus, model={"init_from": "out/model.safetensors"}, optimizer={"lr": 1e-12}, run={"epochs": 1}
    )
    again = tpdist.train(still, tmp_path / "again")
    assert again.valid_perplexity == pytest.approx(result.valid_perplexity, rel=1e-5)
    monkeypatch.chdir("/")
    assert Path(str(tpdist.load_config(tmp_path / "again/config.yaml").model.init_from)).is_absolute()
    (tmp_path / "out/model.safetensors").unlink()  # needed at the start only
    tpdist.resume(tmp_path / "again", ["run.epochs=2"])
    assert tpdist.evaluate(tmp_path / "again").tokens == 19


def test_a_card_speaks_of_its_own_model(small_corpus: Path, tmp_path: Path):
    """And not of a result that an earlier end of the run has left, nor of windows that batch mode has not."""
    run = tmp_path / "run"
    config = small(small_corpus, batching={"mode": "batch"}, run={"epochs": 1, "checkpoint_every": 1})
    tpdist.train(config, run)
    interrupted(lambda: tpdist.resume(run, ["run.epochs=3"], stop_at(3)))
    best = json.loads((run / "models/best.json").read_text())
    assert best["epoch"] > 1
    card = (tpdist.export(run, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert f"| validation perplexity | {best['valid_perplexity']:.2f} |" in card
    assert "test perplexity" not in card
    assert "S=2, batch mode |" in card
    assert "of level word, trained with tpdist (admm).\n" in card


def test_a_missing_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, model = made()
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # an import then fails
    with pytest.raises(TpdistError) as caught:
        export_model(model, WORDS, config, {"epoch": 1}, tmp_path / "out", onnx=True)
    assert str(caught.value) == "onnx is not installed; pip install 'tpdist[onnx]'"
    assert not (tmp_path / "out").exists()


def test_a_damaged_result_is_left_out_of_the_card(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus), run)
    for number, damaged in enumerate(("{", "[]", "{}", "[" * 3000 + "]" * 3000)):
        (run / "result.json").write_text(damaged)
        card = (tpdist.export(run, tmp_path / f"out{number}") / "README.md").read_text(encoding="utf-8")
        assert "| validation perplexity | " in card
        assert "test perplexity" not in card


@pytest.mark.parametrize("missing", ["epoch", "valid_perplexity"])
def test_a_model_of_which_a_figure_is_missing(missing: str, small_corpus: Path, tmp_path: Path):
    file = tmp_path / "run/models/best.json"
    tpdist.train(small(small_corpus), tmp_path / "run")
    about = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in about.items() if name != missing}))
    with pytest.raises(RunError, match=r"best\.json: not what tpdist wrote; evaluate --model last, or train an epoch"):
        tpdist.export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_last_model_and_what_exists_already(small_corpus: Path, tmp_path: Path):
    tpdist.train(small(small_corpus), tmp_path / "run")
    out = tpdist.export(tmp_path / "run", tmp_path / "deep/out", which="last")
    last = load_file(tmp_path / "run/models/last.safetensors")
    assert torch.equal(load_file(out / "model.safetensors")["decoder.bias"], last["bias"])
    assert json.loads((out / "config.json").read_text())["types"] == len(last["bias"])
    with pytest.raises(RunError, match="exists already and is not overwritten"):
        tpdist.export(tmp_path / "run", out)


def test_a_run_that_cannot_start_leaves_nothing(small_corpus: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model\.init_from: .*missing"):
        tpdist.train(small(small_corpus, model={"init_from": "no.safetensors"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cell", ["gru", "lstm", "mrnn"])
def test_a_step_is_a_step(cell: str):
    _, model = made(cell=cell, layers=2)
    tokens, state = (
        torch.tensor([1, 2, 3]),
        torch.randn(3, model.state_size, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        logits, after = Step(model)(tokens, state)
        h, expected = model.unroll(tokens[None], state)
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(logits, model.logits(h[0]))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_onnx_computes_the_same(cell: str, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'tpdist[onnx]'")
    pytest.importorskip("onnxscript", reason="needs pip install 'tpdist[onnx]'")
    config, model = made(cell=cell, layers=2)
    export_model(model, WORDS, config, {"epoch": 1}, tmp_path / "out", onnx=True)
    assert "## ONNX" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    session = onnxruntime.InferenceSession(str(tmp_path / "out/step.onnx"))
    state, kept = torch.zeros(5, model.state_size).numpy(), model.zero_state(5)
    for tokens in torch.randint(len(WORDS), (4, 5), generator=torch.Generator().manual_seed(1)):
        logits, state = session.run(["logits", "next_state"], {"tokens": tokens.numpy(), "state": state})
        with torch.no_grad():
            expected, kept = Step(model)(tokens, kept)
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-6, rtol=0)
