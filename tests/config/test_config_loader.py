"""What a good file and good overrides come to: values, layers, places."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tpdist.config import Experiment, Sweep, load_config, with_place
from tpdist.config.loader import locate
from tpdist.config.parts import Method
from tpdist.errors import ConfigError
from tpdist.experiments.points import expand

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_loading_imports_neither_torch_nor_ray_nor_numpy():
    code = (
        "import sys, tpdist.config as c; c.load_config(None, ['run.seed=1']); c.json_schema(); "
        "assert not {'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_in_configs_loads(path: Path):
    config = load_config(path)
    assert isinstance(config, Experiment)
    if config.sweep is not None:
        assert expand(path)  # every arm, with everything that it tries
    schema = os.path.relpath(CONFIGS / "schema.json", path.parent)
    assert path.read_text().startswith(f"# yaml-language-server: $schema={schema}\n")


def test_no_file_is_the_defaults():
    assert load_config(None) == Experiment()


def test_a_path_may_be_text(tmp_path: Path):
    assert load_config(str(write(tmp_path, "run: {seed: 3}"))).run.seed == 3


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("5.", 5.0), ("1", 1.0), ("+1.5e+2", 150.0)]
)
def test_numbers_of_yaml_1_2(text: str, number: float, tmp_path: Path):
    assert load_config(write(tmp_path, f"optimizer: {{lr: {text}}}")).optimizer.lr == number
    assert load_config(None, [f"optimizer.lr={text}"]).optimizer.lr == number


def test_underscores_in_whole_numbers(tmp_path: Path):
    assert load_config(write(tmp_path, "data: {max_types: 10_000}")).data.max_types == 10_000


def test_an_empty_section_is_one_without_keys(tmp_path: Path):
    config = load_config(write(tmp_path, "run: {seed: 1}\nmethod:\noptimizer: {options: }\nmodel: # later\n"))
    assert config == load_config(None, ["run.seed=1"])


def test_byte_order_mark_and_dos_lines(tmp_path: Path):
    assert load_config(write(tmp_path, "\ufeffrun:\r\n  seed: 4\r\n")).run.seed == 4


def test_overrides_of_every_kind(tmp_path: Path):
    path = write(tmp_path, "optimizer: {decay: {factor: 0.3}, options: {eps: 1e-8}}\nrun: {name: old}")
    config = load_config(
        path,
        [
            "run.name=001",
            "data.store=1234",
            "cluster.mesh=[1,2]",
            "cluster.workers=2",
            "optimizer.decay=null",
            "optimizer.options.weight_decay=1e-2",
            "method.dual={lr: 0.5, keep: false}",
            "method.dual.clip=2",
            'data.train="two  words"',
            "data.valid=a=b: [c",
            "model.allow_cells_from=[mine]",
            "model.cell=mine.cells:Own",
        ],
    )
    assert (config.run.name, config.data.store, config.data.train) == ("001", "1234", "two  words")
    assert config.data.valid == "a=b: [c"
    assert (config.cluster.mesh, config.optimizer.decay) == ((1, 2), None)
    assert config.optimizer.options == {"eps": 1e-8, "weight_decay": 1e-2}
    assert (config.method.dual.lr, config.method.dual.keep, config.method.dual.clip) == (0.5, False, 2.0)
    assert config.model.allow_cells_from == ("mine",)


def test_null_is_text_only_where_nothing_else_fits():
    assert load_config(None, ["data.store=null"]).data.store is None
    assert load_config(None, ["data.store='null'"]).data.store == "null"
    assert load_config(None, ["run.name=null"]).run.name == "null"


def test_bptt_is_a_setting():
    config = load_config(None, ["method.name=bptt", "method.h_steps=3", "objective.loss_on=target"])
    assert config.objective.loss_on == "prediction"  # Eq. 8's targets would be constants
    assert (config.method.h_steps, config.objective.weight) == (0, 0.0)
    assert Experiment(method=Method(name="bptt")) == load_config(None, ["method.name=bptt"])


def test_a_number_of_workers_gives_way_to_a_range(tmp_path: Path):
    """A run's own config.yaml has the number written out."""
    file = write(tmp_path, "cluster: {workers: 1}\nbatching: {streams: 4, blocks: 8}")
    config = load_config(file, ["cluster.workers.min=2", "cluster.workers.max=4"])
    assert config.cluster.limits == (2, 4)
    with pytest.raises(ConfigError, match=r"^--set: cluster\.workers\.min: max is missing; write both$"):
        load_config(file, ["cluster.workers.min=2"])


def test_an_override_below_a_sweeps_grid_names_one_setting(tmp_path: Path):
    file = write(tmp_path, "sweep: {grid: {optimizer.lr: [1.0]}, arms: {a: {set: {model.hidden: 8}}}}")
    set_too = ["sweep.grid.method.h_steps=[1, 2]", "sweep.arms.a.set.optimizer.name=sgd", "optimizer.options.eps=1e-8"]
    config = load_config(file, set_too)
    assert config.sweep is not None
    assert config.sweep.grid == {"optimizer.lr": [1.0], "method.h_steps": [1, 2]}
    assert config.sweep.arms["a"].set == {"model.hidden": 8, "optimizer.name": "sgd"}
    assert config.optimizer.options == {"eps": 1e-8}


def test_sweeps_may_name_settings_and_their_own_words(tmp_path: Path):
    text = "sweep: {grid: {method.h_steps: [0, 1], optimizer.options.eps: [1e-8]}, seeds: [3]}"
    assert load_config(write(tmp_path, text)).sweep == Sweep(
        grid={"method.h_steps": [0, 1], "optimizer.options.eps": [1e-8]}, seeds=(3,)
    )


def test_places(tmp_path: Path):
    path = write(tmp_path, "preset: released\n\nmethod:\n  h_steps: 2\n  dual: {lr: 1}\nrun: {seed: 1}\n")
    config = load_config(path, ["run.epochs=2"])
    assert locate(config, "method.h_steps") == f"{path}:4"
    assert locate(config, "method.dual.start_epoch") == f"{path}:1"  # the preset's
    assert locate(config, "method.sweeps") == f"{path}:3"  # a default: the section around it
    assert locate(config, "run.epochs") == "--set"
    assert locate(config, "cluster.mesh") == str(path)
    assert locate(load_config(None), "cluster.mesh") == "--set"
    assert locate(Experiment(), "cluster.mesh") is None


def test_with_place(tmp_path: Path):
    path = write(tmp_path, "optimizer:\n  options: {epps: 1}\n")
    config = load_config(path)
    error = with_place(ConfigError("adam has no epps", "optimizer.options.epps"), config)
    assert str(error) == f"{path}:2: optimizer.options.epps: adam has no epps"
    assert error.key == "optimizer.options.epps"
    bare = ConfigError("the corpus is too short")
    assert with_place(bare, config) is bare
    keyed = ConfigError("x", "run.seed")
    assert with_place(keyed, Experiment()) is keyed


def test_places_are_no_part_of_the_value(tmp_path: Path):
    config = load_config(write(tmp_path, "run: {seed: 1}"))
    assert config == load_config(None, ["run.seed=1"])
    assert "_places" not in config.model_dump()
    assert "places" not in repr(config)
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert locate(again, "run.seed") == locate(config, "run.seed")


def test_elastic_workers_have_the_meshes_that_fit():
    config = load_config(None, ["cluster.workers={min: 4, max: 40}", "batching.streams=4", "batching.blocks=8"])
    assert config.cluster.limits == (4, 40)
    # 9 blocks would be needed for 36 = 4 x 9, and 11 for 11 = 1 x 11
    assert config.sizes() == [4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 24, 28, 32]
    assert [config.mesh(n) for n in (4, 6, 7, 32)] == [(4, 1), (3, 2), (1, 7), (4, 8)]


def test_a_number_of_workers_is_the_only_size(tmp_path: Path):
    config = load_config(None, ["cluster.workers=6", "cluster.mesh=[2,3]"])
    assert (config.cluster.limits, config.sizes(), config.mesh()) == ((6, 6), [6], (2, 3))
    file = tmp_path / "a.yaml"
    file.write_text("cluster: {workers: {min: 1, max: 2}}")
    assert load_config(file, ["cluster.workers=6"]).cluster.limits == (6, 6)
    assert load_config(file, ["cluster.workers.max=3"]).cluster.limits == (1, 3)


def test_a_tilde_is_the_home_of_whoever_loads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/ada")
    file = write(tmp_path, "data: {recipe: text, source: ~/a.txt, store: ~}\nrun: {checkpoint_to: s3://~/b}\n")
    config = load_config(file, ["model.init_from=~/m.safetensors", "data.column=a~b"])
    assert (config.data.source, config.data.store, config.data.column) == ("/ada/a.txt", None, "a~b")
    assert (config.model.init_from, config.run.checkpoint_to) == ("/ada/m.safetensors", "s3://~/b")
