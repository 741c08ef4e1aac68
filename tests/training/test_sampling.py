"""Text from a trained model."""

import math
from pathlib import Path

import pytest
import torch
from small_runs import small

import tpdist
from tpdist import DataError, TpdistError
from tpdist.config import Data
from tpdist.data import Store, prepare
from tpdist.models import build_model
from tpdist.training.sampling import sample_text


@pytest.fixture(scope="module")
def run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampling") / "run"
    tpdist.train(small(small_corpus), path)
    return path


def test_the_prompt_and_as_many_tokens_more(run: Path):
    words = tpdist.sample(run, "w1 w2", tokens=7).split()
    assert words[:2] == ["w1", "w2"]
    assert len(words) == 9
    assert len(tpdist.sample(run, tokens=3).split()) == 3


def test_seeds_decide(run: Path):
    texts = [tpdist.sample(run, "w1", tokens=20, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_0_takes_the_likeliest(run: Path):
    texts = {tpdist.sample(run, "w1", tokens=9, temperature=0, seed=seed) for seed in range(3)}
    assert texts == {tpdist.sample(run, "w1", tokens=9, top_k=1)}
    assert tpdist.sample(run, "w1", tokens=9, temperature=1e-3) in texts


def test_a_token_follows_from_all_that_is_before_it(run: Path):
    store = Store.open(tpdist.load_config(run / "config.yaml").data.store or "")
    config = small(run, model={"init": 2.0})
    model = build_model(config.model, config.run, len(store.vocabulary))
    ids = store.vocabulary.encode(["w1", "w2"]).tolist()
    for _ in range(20):
        h, _ = model.unroll(torch.tensor(ids)[:, None], model.zero_state(1))
        ids.append(int(model.logits(h[-1, 0]).argmax()))
    assert sample_text(model, store, "w1 w2", 20, 0.0, None, 0) == store.vocabulary.decode(ids)


def test_the_last_model_can_be_asked_too(run: Path):
    assert tpdist.sample(run, "w1", tokens=2, which="last").startswith("w1 ")


def test_unknown_words_are_never_drawn(tmp_path: Path):
    for split, text in {"train": "a a a b\n" * 20, "valid": "a z\n", "test": "a q\n"}.items():
        (tmp_path / split).write_text(text)
    files = {split: str(tmp_path / split) for split in ("train", "valid", "test")}
    store = prepare(Data(recipe="text", **files), tmp_path / "store")
    config = small(tmp_path)
    model = build_model(config.model, config.run, len(store.vocabulary))
    model.bias.data[store.vocabulary.index["<unk>"]] = 50.0
    text = sample_text(model, store, "a unheard", 40, 1.0, None, 0)
    assert text.startswith("a <unk> ")  # the prompt may hold one
    assert text.count("<unk>") == 1


def test_top_k_draws_from_the_likeliest(run: Path):
    store = Store.open(tpdist.load_config(run / "config.yaml").data.store or "")
    config = small(run)
    model = build_model(config.model, config.run, len(store.vocabulary))
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    model.bias.data[:3] = torch.tensor([2.0, 1.0, 0.5])
    drawn = sample_text(model, store, "", 200, 1.0, 2, 0).split()
    assert set(drawn) == set(store.vocabulary.types[:2])


def test_the_least_temperature_takes_the_likeliest(run: Path):
    assert tpdist.sample(run, tokens=20, temperature=5e-324) == tpdist.sample(run, tokens=20, temperature=0)


BAD = [
    ({"tokens": 0}, "tokens: must be at least 1, got 0"),
    ({"tokens": -3}, "tokens: must be at least 1, got -3"),
    ({"temperature": -0.1}, "temperature: must be a number of at least 0, got -0.1"),
    ({"temperature": math.nan}, "temperature: must be a number of at least 0, got nan"),
    ({"temperature": math.inf}, "temperature: must be a number of at least 0, got inf"),
    ({"top_k": 0}, "top_k: must be at least 1, got 0"),
    ({"seed": -1}, "seed: must be at least 0 and below 2^63, got -1"),
    ({"seed": 2**63}, "seed: must be at least 0 and below 2^63, got 9223372036854775808"),
    ({"which": "first"}, "which: must be one of best, last; got 'first'"),
    ({"prompt": "w1 hello"}, "'hello' is not in the vocabulary of 12 types, which has no <unk>"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_numbers_and_prompts(options: dict, said: str, run: Path):
    with pytest.raises(TpdistError) as caught:
        tpdist.sample(run, **options)
    assert str(caught.value) == said
    assert isinstance(caught.value, DataError) == ("prompt" in options)
