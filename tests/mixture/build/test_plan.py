"""What a plan counts in tokens, against transformers' own tokenizer over the built texts."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.plan import plan, prepare
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.pool import Pool
from vlmix.mixture.io.tokenizer import TokenCounter
from vlmix.mixture.mixture import open as open_mixture


def test_tokens_of_a_plan_are_those_of_the_mixture(raw: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(".", "isolated")  # a token for each full stop and what is between
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sources: dict[str, Any] = {"okvqa": {}, "textcaps": {}, "vg": {"take": 7}, "sharegpt": {}}
    recipe = parse({"name": "x", "sources": sources}, known_sources())
    with Pool(1) as pool:
        prepared = prepare(recipe, known_sources(), raw, tmp_path / "work", pool, [raw])
    rows = {row.source: row.tokens for row in plan(prepared, TokenCounter(str(tmp_path)))}
    build(recipe, known_sources(), raw, tmp_path / "mix")
    expected = dict.fromkeys(rows, 0)
    for sample in open_mixture(tmp_path / "mix"):
        for turn in sample.conversations:
            text = turn.value.replace("<image>", "")
            expected[sample.source] += len(tokenizer.encode(text, add_special_tokens=False))
    assert rows == expected and all(rows.values())
    assert all(row.tokens is None for row in plan(prepared))


@pytest.mark.parametrize("name", ["none.json", "./none", "/nowhere/none"])
def test_a_tokenizer_that_is_not_there(name: str) -> None:
    with pytest.raises(VlmixError, match="there is no such file; name a tokenizer.json"):
        TokenCounter(name)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[")
    with pytest.raises(VlmixError, match="tokenizer "):
        TokenCounter(str(tmp_path))
