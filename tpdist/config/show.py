"""The resolved configuration as YAML, and the JSON Schema that editors check the files in `configs/` with."""

import json
from typing import Any

import yaml

from tpdist.config.experiment import Experiment
from tpdist.config.yaml_text import RESOLVERS


class _Dumper(yaml.SafeDumper):
    """Sections in block style, lists on one line; quotes whatever any reader could take for more than text."""

    # PyYAML's own rules and the loader's: `1e-3` and `2024-01-01` as text both need quotes for somebody
    yaml_implicit_resolvers = {first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in RESOLVERS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _list(dumper: yaml.SafeDumper, items: Any) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)


def to_yaml(config: Experiment) -> str:
    """Every value in declared order; `load_config` reads it back to an equal `Experiment`."""
    values = config.model_dump()
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=2**20)


def json_schema() -> str:
    """JSON Schema (draft 2020-12) of a configuration file, as it lies in `configs/schema.json`."""
    schema = Experiment.model_json_schema()
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "tpdist configuration",
        "description": "One experiment: corpus, model, objective, method, batching, optimiser, run and cluster.",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
