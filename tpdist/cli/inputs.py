"""Commands of what goes into a run: corpora and configurations."""

import argparse
from os.path import expanduser
from pathlib import Path
from typing import Any

from tpdist.cli.options import above, add_config, add_dry_run, add_quiet, add_set, print_json, print_lines, say
from tpdist.errors import Setting, TpdistError


def add(commands: Any) -> None:
    """Add them to the subcommands of `tpdist`."""
    data = commands.add_parser("data", help="prepare a corpus").add_subparsers(required=True, metavar="COMMAND")
    prepare = data.add_parser("prepare", help="turn text into a store")
    prepare.add_argument(
        "recipe", choices=("ptb", "wikitext", "text8", "text", "python-docs", "synthetic"), help="which corpus"
    )
    prepare.add_argument(  # a shell leaves --out=~/store as it is; of the paths beside it the configuration fills in ~
        "--out", type=expanduser, required=True, metavar="DIR", help="the store's directory; must not exist"
    )
    prepare.add_argument(
        "--source", metavar="PATH", help="ptb, wikitext: the directory; text8, text: a file, cut 90/5/5"
    )
    for split in ("train", "valid", "test"):
        prepare.add_argument(f"--{split}", metavar="FILE", help=f"recipe text: the {split} file, text or Parquet")
    prepare.add_argument("--level", choices=("word", "char"), help="tokens are words or characters; default word")
    prepare.add_argument("--max-types", metavar="N", help="keep the N most frequent types, <unk> and <eos> among them")
    prepare.add_argument("--min-count", metavar="N", help="drop types rarer than N")
    prepare.add_argument("--max-tokens", metavar="N", help="keep the first N tokens of the training split")
    prepare.add_argument("--column", metavar="NAME", help="the text column of Parquet files; default text")
    add_dry_run(prepare, "what would be read")
    add_quiet(prepare, "the counts")
    add_set(prepare)
    prepare.set_defaults(command=_prepare)
    verify = data.add_parser("verify", help="read a store through and check it")
    verify.add_argument("store", metavar="DIR", help="the store's directory")
    verify.set_defaults(command=_verify)

    config = commands.add_parser("config", help="look at configurations").add_subparsers(
        required=True, metavar="COMMAND"
    )
    show = config.add_parser("show", help="print the resolved configuration")
    add_config(show)
    add_set(show)
    show.set_defaults(command=_show)
    schema = config.add_parser("schema", help="print a JSON Schema for editors")
    schema.set_defaults(command=_schema)


def _prepare(options: argparse.Namespace) -> None:
    names = ["recipe", "source", "train", "valid", "test", "level", "max_types", "min_count", "max_tokens", "column"]
    given = {name: getattr(options, name) for name in names}
    overrides = [Setting(f"data.{name}={value}", _option(name)) for name, value in given.items() if value is not None]
    overrides.append(Setting(f"data.store={options.out}", "--out"))
    from tpdist.config import RECIPES_READ, load_config

    for key, recipes in RECIPES_READ.items():
        name = key.removeprefix("data.")
        if given.get(name) is not None and options.recipe not in recipes:
            raise TpdistError(f"{_option(name)}: recipe {options.recipe} does not read it; leave it out")
    data = load_config(None, above(options.set, overrides)).data
    from tpdist.data import dry_run, prepare
    from tpdist.data.recipes import reads_parquet
    from tpdist.training.progress import DataBar

    if options.column is not None and not reads_parquet(data):
        raise TpdistError(f"--column: {options.column} is a column of no Parquet file here; leave it out")
    if options.dry_run:
        print_lines(dry_run(data, Path(options.out)), options)
        return
    quiet = options.quiet or options.json
    with DataBar(quiet) as bar:
        store = prepare(data, Path(options.out), bar)
    if options.json:
        tokens, unigram = store.manifest.tokens, store.manifest.unigram_perplexity
        print_json({"store": options.out, "tokens": tokens, "types": len(store.vocabulary), "unigram": unigram})
    if quiet:
        return
    counts = ", ".join(f"{split} {count:,}" for split, count in store.manifest.tokens.items())
    say(f"{options.out}: {counts} tokens, {len(store.vocabulary):,} types")


def _option(name: str) -> str:
    """As the user writes it."""
    return "RECIPE" if name == "recipe" else "--" + name.replace("_", "-")


def _verify(options: argparse.Namespace) -> None:
    from tpdist.data import Store

    Store.open(options.store).verify()
    say(f"{options.store}: whole")


def _show(options: argparse.Namespace) -> None:
    from tpdist.config import load_config, to_yaml

    say(to_yaml(load_config(options.config, options.set)), end="")


def _schema(_: argparse.Namespace) -> None:
    from tpdist.config import json_schema

    say(json_schema(), end="")
