"""How many rows the subsets of well-known sets have at their origin, as far as that is published."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files


@cache
def known_rows() -> Mapping[str, int]:
    """`set/subset` -> rows."""
    text = files("vlmix.builders.rows").joinpath("known_rows.csv").read_text(encoding="utf-8")
    return {f"{row['set']}/{row['subset']}": int(row["rows"]) for row in csv.DictReader(text.splitlines())}
