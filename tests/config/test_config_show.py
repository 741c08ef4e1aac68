"""The resolved config as YAML, and the schema that editors use."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tpdist.config import Experiment, json_schema, load_config, to_yaml
from tpdist.config.yaml_text import INT, RESOLVERS

CONFIGS = Path(__file__).parents[2] / "configs"
REFRESH = "configs/schema.json is old; write it anew: tpdist config schema > configs/schema.json"


class Editor(yaml.SafeLoader):
    """YAML 1.2, as editors read it that check a file by the schema: 500_000 is text to them."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the name and the place are PyYAML's)


for _tag, _pattern, _first in RESOLVERS:
    Editor.add_implicit_resolver(_tag, re.compile(r"^[-+]?[0-9]+$") if _tag == INT else _pattern, _first)


def test_keys_stand_in_declared_order():
    lines = [line for line in to_yaml(Experiment()).splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in lines] == list(Experiment.model_fields)


def test_other_readers_of_yaml_see_the_same_values():
    config = load_config(None, ["data.store=1e-3", "data.train=2024-01-01", "data.valid=yes", "optimizer.lr=1e-5"])
    values = yaml.safe_load(to_yaml(config))
    assert (values["data"]["store"], values["data"]["train"], values["data"]["valid"]) == ("1e-3", "2024-01-01", "yes")
    assert values["optimizer"]["lr"] == 1e-5
    assert Experiment.model_validate(values) == config


def test_lists_stand_on_one_line():
    assert "  mesh: [1, 2]\n" in to_yaml(load_config(None, ["cluster.mesh=[1,2]", "cluster.workers=2"]))


def test_the_schema_file_is_up_to_date():
    assert (CONFIGS / "schema.json").read_text(encoding="utf-8") == json_schema(), REFRESH


def test_the_schema_is_strict_and_tells_what_each_key_is():
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        for name, key in part["properties"].items():
            assert key.get("description"), name


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_the_files_fit_the_schema(path: Path):
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    validator.validate(yaml.safe_load(to_yaml(load_config(path))))
    validator.validate(yaml.load(path.read_text(encoding="utf-8"), Editor))


@pytest.mark.parametrize(
    "values", [{"modle": {}}, {"method": {"h_steps": 0.5}}, {"preset": "x"}, {"objective": {"block": 0}}]
)
def test_the_schema_refuses(values: dict[str, Any]):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json.loads(json_schema()), jsonschema.Draft202012Validator)
