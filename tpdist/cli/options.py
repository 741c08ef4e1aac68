"""Options that many commands take."""

import argparse


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE …`: what lies above the file."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the file")
