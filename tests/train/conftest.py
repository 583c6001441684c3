"""A mixture of samples with none to five images each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse

ASKED = {
    0: ["Who is it?", "Nobody, and <image> is a tag."],
    1: ["Look here: <image>\nWhat color is it?", "red", "Sure? <image>", "yes"],
    2: ["Is <image> larger than <image>?", "no", "Why?", "it is not"],
    3: ["<image>\n<image>\nWhat changed?", "the light", "And here?\n<image>", "it is night"],
    4: ["Sort these.", "first <image> then <image>", "And?", "<image>", "Last?", "the one at <image>"],
    5: ["<image>\n<image>\n<image>\nSo, like <image>?", "as you see"],
}
"""Turns by the number of images; one of the five is not named."""


def row(number: int, images: int) -> dict[str, object]:
    turns = [
        f"{text} {number}" if i % 2 == 0 and "<image>" not in text else text for i, text in enumerate(ASKED[images])
    ]
    return {
        "id": f"{images}-{number}",
        **({"images": [f"pictures/{number}-{i}.jpg" for i in range(images)]} if images else {}),
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)],
    }


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven samples of each number of images, built from LLaVA's JSON. Read only."""
    raw = tmp_path_factory.mktemp("several")
    rows = [row(number, number % 6) for number in range(66)]
    (raw / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for each in rows:
        for path in each.get("images", []):  # type: ignore[attr-defined]
            width, height = draw.integers(20, 70, 2).tolist()
            coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(raw / path)
    (raw / "rows.json").write_text(json.dumps(rows))
    recipe = {"name": "several", "sources": {"llava_json": {"path": str(raw / "rows.json")}}, "samples_per_shard": 20}
    build(parse(recipe, known_sources()), known_sources(), raw, raw / "mixture")
    return raw / "mixture"
