"""docs/add_an_export.md, followed to the letter."""

import csv
import re
from pathlib import Path
from types import ModuleType

import vlmix
from vlmix.mixture import export

ROOT = Path(__file__).parents[3]


def test_the_page_works_as_printed(mixture: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/add_an_export.md").read_text()
    module, entry = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    made = ModuleType("csv_form")
    exec(module, made.__dict__)
    forms: dict[str, export.Form] = {}
    exec(entry, {"FORMS": forms, "Form": export.Form, "csv": made})
    written = forms["csv"].write(mixture, tmp_path / "out", lambda *_: None)
    opened = vlmix.open(mixture)
    assert written == sum(opened.column("repeat").to_pylist())
    with (tmp_path / "out/rounds.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == sum(opened.column("num_rounds").to_numpy() * opened.column("repeat").to_numpy())
    sample = opened[opened.index_of(found[0]["id"])]
    assert (found[0]["question"], found[0]["answer"]) == tuple(turn.value for turn in sample.conversations[:2])
    shown = next(row for row in found if row["images"])
    sample = opened[opened.index_of(shown["id"])]
    assert (tmp_path / "out/images" / sample.image).read_bytes() == sample.jpeg
