"""The card of an exported model: README.md, which the Hugging Face hub shows and whose head it reads.

It says what the run's folder says. Nothing in it tells where that was: of paths and addresses the last part alone is
left.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from vlmix.mixture.blend import names_of
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.visible import markdown, markdown_link, visible
from vlmix.mixture.version import VERSION
from vlmix.train.config import Recipe
from vlmix.train.metrics import read
from vlmix.train.weights.pretrained import is_local

CARD_NAME = "README.md"
DATA_NAME = "data.json"
"""File of a run that says what it trains on."""
_PRIVATE = ("out", "wandb")
"""Keys of a recipe that say nothing of the model."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOAD = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its name on the hub
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}
prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
inputs = processor(images=Image.open("picture.jpg"), text=prompt, return_tensors="pt").to(model.dtype)
answer = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
"""


def card(recipe: Recipe, run: Path, step: int) -> str:
    """README.md of the model that a run had after `step` steps. Raises VlmixError if the run's `data.json` cannot be
    read."""
    try:
        data = json.loads((run / DATA_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VlmixError(f"{run / DATA_NAME}: {error}; start the run again, which writes it") from None
    rows = [row for row in read(run) if row["step"] <= step]
    sources: dict[str, dict[str, Any]] = data["sources"]
    lines = [
        "---",
        yaml.safe_dump(_head(recipe, sources), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {markdown(recipe.name)}",
        "",
        f"{_kind(recipe)} Written by vlmix {VERSION} with torch {version('torch').partition('+')[0]} and transformers "
        f"{version('transformers')}.",
        "",
        "## Use",
        "",
        *_code(_LOAD, "python"),
        "",
        "## Data",
        "",
        *_data(data, sources),
        "",
        "## Training",
        "",
        *_training(data, rows, step),
        "",
        "## Measured",
        "",
        *_measured(recipe, rows),
        "",
        "## Not run",
        "",
        *_not_run(recipe, rows),
        "",
        "## Recipe",
        "",
        *_code(yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True), "yaml"),
    ]
    return "\n".join(lines) + "\n"


def _head(recipe: Recipe, sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    bases = [name for name in (recipe.model.lm, recipe.model.vision_tower) if _on_hub(name)]
    datasets = sorted({name for source in sources.values() for name in source["datasets"]})
    return {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        **({"base_model": bases} if bases else {}),
        **({"datasets": datasets} if datasets else {}),
        # Every source and every part of the model keeps its own; the hub's list has no name for that.
        "license": "other",
        "license_name": "those-of-data-and-base-models",
        "tags": ["llava", "vlmix"],
    }


def _on_hub(name: Any) -> bool:
    return isinstance(name, str) and bool(_HUB_NAME.fullmatch(name)) and not is_local(name) and not Path(name).exists()


def _kind(recipe: Recipe) -> str:
    def said(part: Any) -> str:
        return f"`{_bare(part)}`" if isinstance(part, str) else f"a randomly initialized {part.get('model_type')}"

    trained = ", ".join(part.replace("lm", "LM").replace("_", " ") for part in sorted(recipe.trainable))
    how = f" (adapters of rank {recipe.lora.rank} on the LM, merged)" if recipe.lora else ""
    model = "LlavaNext" if recipe.model.tile_grids else "Llava"
    model = "AyaVision" if recipe.model.connector == "pixel_shuffle" else model
    start = ", a connector from stage one" if recipe.model.init_connector_from else ""
    return (
        f"A {model} model of {said(recipe.model.lm)} and {said(recipe.model.vision_tower)}{start}. "
        f"Trained parts: {trained}{how}."
    )


def _data(data: dict[str, Any], sources: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"{markdown(data['mixture'])}: {data['samples']:,} samples."]
    lines += [
        f"{markdown(each['name'])}: {_share(each)}, {each['samples']:,} samples, {each['trained_samples']:,} of them "
        "trained on, repetitions counted."
        for each in data.get("mixtures", [])
    ]
    lines += ["", "| source | samples | license |", "|---|---:|---|"]
    for name, source in sources.items():
        label = markdown_link(name, source["homepage"])
        lines.append(f"| {label} | {source['samples']:,} | {markdown(source['license'])} |")
    return [*lines, "", "Data and base models keep their own licenses; vlmix adds none."]


def _share(mixture: dict[str, Any]) -> str:
    return f"weight {mixture['weight']:g}" if "weight" in mixture else f"repeat {mixture['repeat']:g}"


def _training(data: dict[str, Any], rows: list[dict[str, Any]], step: int) -> list[str]:
    lines = [f"{step:,} of {data['steps']:,} steps."]
    if rows:
        last = rows[-1]
        total = last["total"]
        lines = [
            f"{step:,} of {data['steps']:,} steps, {last['epoch']:,.2f} epochs: {total['samples']:,.0f} samples, "
            f"{total['tokens']:,.0f} tokens, {total['target_tokens']:,.0f} of them target tokens. Loss over the last "
            f"line of metrics: {last['loss']:.4f}."
        ]
    parts = ", ".join(
        f"{part.replace('lm', 'LM').replace('_', ' ')} {count['trained'] + count['frozen']:,} "
        f"({'frozen' if not count['trained'] else 'trained' if not count['frozen'] else 'partly trained'})"
        for part, count in sorted(data["parts"].items())
    )
    return [*lines, "", f"Parameters: {parts}."]


def _measured(recipe: Recipe, rows: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    losses, scores = ([row for row in rows if name in row] for name in ("validation", "evaluate"))
    if losses:
        loss, at = losses[-1]["validation"], losses[-1]["step"]
        assert recipe.validation is not None
        where = f"`{_bare(recipe.validation.mixture)}`" if recipe.validation.mixture else "held-out pictures"
        lines += [
            f"Validation loss on {loss['samples']:,} samples of {where}, after {at:,} steps: {_within(loss, 'loss', 4)}"
        ]
    if scores:
        asked, at = scores[-1]["evaluate"], scores[-1]["step"]
        lines += ["", f"Benchmarks after {at:,} steps:", "", "| benchmark | score | questions |", "|---|---:|---:|"]
        lines += [
            f"| {markdown(name)} | {_within(score, 'score', 2)} | {score['questions']:,} |"
            for name, score in asked.items()
        ]
    if lines:
        lines += ["", "Intervals are of 95 %."]
    return lines[1:] if lines[:1] == [""] else lines or ["Nothing but the loss on what was trained on."]


def _within(facts: dict[str, Any], name: str, digits: int) -> str:
    value = f"{facts[name]:.{digits}f}"
    return value if "low" not in facts else f"{value} ({facts['low']:.{digits}f} to {facts['high']:.{digits}f})"


def _not_run(recipe: Recipe, rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    if not any("validation" in row for row in rows):
        lines.append("- No loss was measured on data that the model was not trained on.")
    if not any("evaluate" in row for row in rows):
        lines.append("- No benchmark was asked while it was trained.")
    elif recipe.evaluate is not None:
        limits = {name: each.limit or recipe.evaluate.limit for name, each in recipe.evaluate.benchmarks.items()}
        lines += [
            f"- {markdown(_bare(name))} was asked its first {limit:,} questions only."
            for name, limit in limits.items()
            if limit
        ]
    return [
        *lines,
        "- It was loaded and compared, weight by weight, in the transformers named above, and in no other library.",
        "- Nothing was done or tested about bias, safety or use in products.",
    ]


def _plain(recipe: Recipe) -> dict[str, Any]:
    plain = {key: value for key, value in recipe.resolved().items() if key not in _PRIVATE}
    if isinstance(recipe.mixture, dict):
        plain["mixture"] = dict(zip(names_of(list(recipe.mixture)), recipe.mixture.values()))
    stripped: dict[str, Any] = _stripped(plain)
    return stripped


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {_bare(key): _stripped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_stripped(inner) for inner in value]
    return _bare(value) if isinstance(value, str) else value


def _bare(text: str) -> str:
    """A path or an address by its last part; a name on the hub, or a relative path, as it is."""
    address = "://" in text and not text.startswith("package://")
    if address or text.startswith(("/", "~")) or ".." in Path(text).parts:
        return text.rstrip("/").rpartition("/")[2]
    return text


def _code(text: str, language: str) -> list[str]:
    shown = visible(text, lines=True).rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return [f"{fence}{language}", shown, fence]
