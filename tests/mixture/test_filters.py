"""Conditions of `where`, each in a process with little memory and time, as polars may overflow its stack or hang."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.filters import FUNCTIONS, MOST_PARTS, matching

FRAME = pl.DataFrame({"id": ["a/1", "b/2", "c/3"], "source": ["a", "b", "c"], "num_words": [1, 20, 300]})

HOSTILE = {
    "ors": (" OR ".join(f"num_words = {n}" for n in range(3000)), "IN (value, value, …)"),
    "more ors": (" OR ".join(f"num_words = {n}" for n in range(10_000)), "IN (value, value, …)"),
    "sum": ("+".join(["num_words"] * 3000) + " > 1", "IN (value, value, …)"),
    "nots": ("NOT " * 10_000 + "num_words = 1", "IN (value, value, …)"),
    "signs": ("- " * 10_000 + "num_words = 1", "IN (value, value, …)"),
    "brackets": ("(" * 10_000 + "num_words = 1" + ")" * 10_000, "IN (value, value, …)"),
    "list of lists": ("num_words IN (" + "(1)," * 3000 + "1)", "IN (value, value, …)"),
    "long text": (f"id || '{'x' * 1_000_000}' = 'a'", "characters outside lists"),
    "nothing in it": ("GREATEST() = 1", "nothing in its brackets"),
    "long strings": ("LPAD(id, 1000000000, 'x') = 'a'", "function lpad is not admitted; admitted are abs"),
    "quoted": ("\"lpad\"(id, 1000000000, 'x') = 'a'", "function lpad is not admitted"),
    "spaced": ("RPAD\n (id, 1000000000, 'x') = 'a'", "function rpad is not admitted"),
    "repeat": ("REPEAT(id, 1000000000) = 'a'", "function repeat is not admitted"),
    "replace": ("REPLACE(id, 'a', 'b') = 'a'", "function replace is not admitted"),
    "escaped string": (r"E'\'' = LPAD(id, 1000000000, 'x') OR id = '\''", "before a string is not taken"),
    "comment": ("num_words = 1 -- '\n OR LPAD(id, 1000000000, 'x') = ''", "holds a comment"),
    "comments": ("num_words = 1 /* ' */ OR LPAD(id, 1000000000, 'x') = ''", "holds a comment"),
    "dollars": ("$$'$$ = LPAD(id, 1000000000, 'x') OR id = ''", "no part of a condition"),
    "file": ("id IN (SELECT * FROM read_csv('/etc/passwd'))", "read_csv is not admitted"),
    "open string": ("id = 'a", "no part of a condition"),
}


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    """What each hostile condition ends with. The conditions share a process as long as none ends it."""
    code = """
import json, sys
from vlmix.mixture.filters import matching
from vlmix.mixture.errors import VlmixError
from tests.mixture.test_filters import FRAME, HOSTILE
for name, (condition, _) in HOSTILE.items():
    try:
        matching(FRAME, condition, "where")
        said = "passed"
    except VlmixError as error:
        said = str(error)
    print(json.dumps([name, said]), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limited, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_condition_that_polars_cannot_bear_is_refused(name: str, messages: dict[str, str]) -> None:
    assert HOSTILE[name][1] in messages[name]
    assert len(messages[name]) < 1000 and "\n" not in messages[name].partition(": ")[0]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("num_words <= 20 AND NOT source = 'b'", [0]),
        ("source IN ('a', 'c')", [0, 2]),
        ("id IN (" + ", ".join(f"'a/{n}'" for n in range(30_000)) + ") OR num_words > 100", [0, 2]),
        ("num_words NOT IN (" + ", ".join(map(str, range(-15_000, 15_000))) + ")", []),
        ("id LIKE 'a%' OR regexp_like(id, '^b')", [0, 1]),
        ("num_words > AVG(num_words)", [2]),
        ("CAST(num_words AS VARCHAR) || id = '1a/1'", [0]),
        ("starts_with(LOWER(id), 'a') OR \"num_words\" BETWEEN 200 AND 4e2", [0, 2]),
        ("CASE WHEN num_words > 10 THEN true ELSE false END", [1, 2]),
        ("id = 'it''s; -- /* LPAD(' OR num_words / 2 * 2 = 20", [1]),
    ],
)
def test_plain_conditions_are_as_they_were(condition: str, rows: list[int]) -> None:
    assert matching(FRAME, condition, "where").nonzero()[0].tolist() == rows


@pytest.mark.processes
def test_the_longest_conditions_that_are_admitted_are_borne() -> None:
    terms = (MOST_PARTS + 1) // 4
    assert matching(FRAME, " OR ".join(["num_words = 1"] * terms), "where").tolist() == [True, False, False]
    nots = "NOT " * (MOST_PARTS - 4) + "num_words = 1"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
from vlmix.mixture.filters import matching
from vlmix.mixture.errors import VlmixError
from tests.mixture.test_filters import FRAME
for condition in ({nots!r}, {"- " * (MOST_PARTS - 3) + "num_words = 1"!r}, {"+".join(["num_words"] * 490) + " > 1"!r}):
    try:
        matching(FRAME, condition, "where")
    except VlmixError:
        pass
print("sound")
""",
        ],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "sound\n", done.stderr


def test_a_panic_of_polars_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(condition: str) -> pl.Expr:
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr(pl, "sql_expr", panic)
    with pytest.raises(VlmixError, match="where: 'num_words = 1': index out of bounds; columns are id"):
        matching(FRAME, "num_words = 1", "where")


def test_every_admitted_function_is_one_of_polars() -> None:
    unknown = []
    for name in sorted(FUNCTIONS):
        for arguments in ("num_words", "id", "id, 'a'", "num_words, 1", "id, 1", "num_words = 1, 1, 2"):
            try:
                matching(FRAME, f"{name}({arguments}) IS NOT NULL", "where")
                break
            except VlmixError as error:
                last = str(error)
        else:
            unknown.append((name, last))
    assert not unknown
