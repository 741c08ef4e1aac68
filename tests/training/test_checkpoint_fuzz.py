"""Nothing that lies in a checkpoint is believed: every flipped byte is noticed, and garbage gets one line.

`fuzz_reader` can be called with any number of examples; `$TPDIST_FUZZ_EXAMPLES` sets it for this file's own test.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from guarded import guarded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_runs import list_checkpoints, small

from tpdist import TpdistError
from tpdist.data import Store
from tpdist.training.checkpoints import load_checkpoint
from tpdist.training.depots import Directory
from tpdist.training.figures import count_update
from tpdist.training.manifest import file_row, verify_checkpoint, write_manifest
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.snapshot import restore
from tpdist.training.trainer import Trainer

EXAMPLES = int(os.environ.get("TPDIST_FUZZ_EXAMPLES", "200"))
FILES = ["manifest.json", "state.json", "states-0-0.safetensors", "tensors.safetensors"]


@pytest.fixture(scope="module")
def trainer(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """With two checkpoints: before the first update, and in the middle of the first epoch. Its H and U are Adam's."""
    method = {"first": "persistent", "h_optimizer": {"name": "adam", "lr": 0.05}}
    config = small(small_corpus, method=method, model={"hidden": 3})
    run = RunDirectory(tmp_path_factory.mktemp("fuzz"))
    trainer = Trainer(config, Store.open(small_corpus), run, Silent())
    trainer._begin_epoch()
    trainer.save_checkpoint()
    for batch in list(trainer.batches.epoch(1))[:2]:
        count_update(trainer, batch, trainer._visit(batch), 0.0)
    trainer.save_checkpoint()
    trainer.writer.wait()
    return trainer


def fresh(trainer: Trainer) -> Trainer:
    """As a run that goes on begins."""
    return Trainer(trainer.config, trainer.store, trainer.run, Silent())


def flipped(raw: bytes) -> Iterator[bytes]:
    """One byte changed: all bits, or one of them; at every place of a small file, at many of a larger one."""
    for place in sorted({*range(0, len(raw), max(1, len(raw) // 250)), len(raw) - 1}):
        for mask in (255, 1 << place % 8):
            yield raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :]


def truncated(raw: bytes) -> Iterator[bytes]:
    for length in sorted({*range(0, len(raw), max(1, len(raw) // 50)), len(raw) - 1}):
        yield raw[:length]


@pytest.mark.parametrize("damage", [flipped, truncated])
@pytest.mark.parametrize("file", FILES)
def test_one_byte_of_any_file(file: str, damage: Callable[[bytes], Iterator[bytes]], trainer: Trainer, tmp_path: Path):
    shutil.copytree(trainer.run.checkpoints, tmp_path / "all")
    older, newer = list_checkpoints(tmp_path / "all")
    assert sorted(path.name for path in newer.iterdir()) == FILES
    raw = (newer / file).read_bytes()
    for altered in damage(raw):
        (newer / file).write_bytes(altered)
        wrong = verify_checkpoint(newer)
        assert wrong is not None
        assert wrong.startswith(f"{newer / file}: ")
    said: list[str] = []
    loaded = load_checkpoint(Directory(tmp_path / "all"), said.append)
    assert loaded.path == older
    assert said == [f"{wrong}; the checkpoint before it is used"]
    resumed = fresh(trainer)
    restore(resumed, loaded)
    assert resumed.state.step == 0


def test_white_space_is_a_change_too(trainer: Trainer, tmp_path: Path):
    shutil.copytree(list_checkpoints(trainer.run.checkpoints)[-1], tmp_path / "one")
    manifest = tmp_path / "one/manifest.json"
    manifest.write_text(manifest.read_text().replace(" ", "\t", 1))
    assert verify_checkpoint(tmp_path / "one") == f"{manifest}: not a checkpoint's manifest, or altered"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "states-0-0.safetensors/../../outside", "x.json"])
def test_a_manifest_cannot_name_a_file_elsewhere(name: str, trainer: Trainer, tmp_path: Path):
    shutil.copytree(list_checkpoints(trainer.run.checkpoints)[-1], tmp_path / "one")
    (tmp_path / "outside").write_text("secret")
    files = json.loads((tmp_path / "one/manifest.json").read_text())["files"]
    write_manifest(tmp_path / "one/manifest.json", {**files, name: file_row(tmp_path / "outside")})
    assert verify_checkpoint(tmp_path / "one") == (
        f"{tmp_path}/one/manifest.json: lists {name!r}, which is no file of a checkpoint"
    )


def test_a_shard_cannot_be_a_file_elsewhere(trainer: Trainer, tmp_path: Path):
    path = tmp_path / "step-00000002"
    shutil.copytree(list_checkpoints(trainer.run.checkpoints)[-1], path)
    state = json.loads((path / "state.json").read_text())
    state["shards"][0]["file"] = "../step-00000002/states-0-0.safetensors"
    (path / "state.json").write_text(json.dumps(state))
    sign(path)
    with pytest.raises(TpdistError, match=r"state.json: speaks of '../step-00000002/states-0-0.safetensors', which"):
        load_checkpoint(Directory(tmp_path), print)


def test_a_pipe_is_not_waited_for(trainer: Trainer, tmp_path: Path):
    for file in FILES:
        shutil.copytree(list_checkpoints(trainer.run.checkpoints)[-1], tmp_path / file)
        (tmp_path / file / file).unlink()
        os.mkfifo(tmp_path / file / file)
        assert verify_checkpoint(tmp_path / file) == f"{tmp_path / file / file}: not a file"


def sign(path: Path) -> None:
    """A manifest that fits whatever is there."""
    files = [file for file in FILES if file != "manifest.json"]
    write_manifest(path / "manifest.json", {file: file_row(path / file) for file in files})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def garble_json(file: Path, data: st.DataObject) -> None:
    """Something of it is missing, or something else."""
    content = json.loads(file.read_text())
    *path, key = data.draw(st.sampled_from(list(places(content))))
    inner = content
    for step in path:
        inner = inner[step]
    if data.draw(st.booleans()):
        del inner[key]
    else:
        inner[key] = data.draw(JSON)
    file.write_text(json.dumps(content))


def garble_tensors(file: Path, data: st.DataObject) -> None:
    """A tensor is missing, of another name, shape, type or value, or there is one more."""
    tensors = load_file(file)
    name = data.draw(st.sampled_from(sorted(tensors)))
    was = tensors.pop(name)
    others = [*sorted(tensors), "theta.0.", "theta.x.y", "boundaries.h_moments."]
    name = data.draw(st.just(name) | st.sampled_from(others) | st.text(max_size=6))
    shape = data.draw(st.just(list(was.shape)) | st.lists(st.integers(0, 4), max_size=4))
    dtype = data.draw(st.sampled_from([was.dtype, torch.float64, torch.int8, torch.bool, torch.bfloat16]))
    if data.draw(st.booleans()):
        tensors[name] = torch.zeros(shape, dtype=dtype)
    save_file(tensors, file)


def garble_bytes(file: Path, data: st.DataObject) -> None:
    raw = file.read_bytes()
    begin, end = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    file.write_bytes(raw[:begin] + data.draw(st.binary(max_size=20)) + raw[end:])


def fuzz_reader(trainer: Trainer, scratch: Path, examples: int) -> None:
    """A checkpoint with garbage in it, whose manifest fits it: it is read, or refused in one line, and never more."""
    source = list_checkpoints(trainer.run.checkpoints)[-1]
    path, said = scratch / "all" / source.name, []
    (scratch / "tmp").mkdir()

    @settings(
        max_examples=examples, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        file = data.draw(st.sampled_from(FILES))
        kinds = [garble_bytes, garble_json if file.endswith("json") else garble_tensors]
        data.draw(st.sampled_from(kinds))(path / file, data)
        if file != "manifest.json":
            sign(path)
        resumed = fresh(trainer)
        with guarded(scratch), patch("tempfile.tempdir", str(scratch / "tmp")):
            try:
                restore(resumed, load_checkpoint(Directory(path.parent), lambda _: None))
            except TpdistError as error:
                said.append(str(error))
        assert not said or said[-1].isprintable()
        assert sorted(found.name for found in scratch.iterdir()) == ["all", "tmp"]

    run()
    assert said  # some were refused


def test_garbage_gets_one_line(trainer: Trainer, tmp_path: Path):
    fuzz_reader(trainer, tmp_path, EXAMPLES)
