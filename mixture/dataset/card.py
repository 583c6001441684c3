"""The dataset card: the composition for people, and the configuration that HF datasets reads."""

from typing import Any

import yaml

from vlmix.mixture.dataset import schema
from vlmix.mixture.dataset.manifest import SAMPLES_NAME, Counts, Manifest
from vlmix.mixture.dataset.tar import image_member
from vlmix.mixture.io.visible import markdown, markdown_code, markdown_link, visible

_TEXT = {"dtype": "string"}


def _size() -> list[dict[str, str]]:
    """Made anew for each place: YAML writes the same object twice as an alias, and HF datasets reads no aliases."""
    return [{"name": name, "dtype": "int64"} for name in ("width", "height")]


_FEATURES = [
    {
        "name": "json",
        "struct": [
            *({"name": name, **_TEXT} for name in ("id", "source", "image")),
            *_size(),
            {"name": "images", "list": [{"name": "path", **_TEXT}, *_size()]},
            {"name": "conversations", "list": [{"name": "from", **_TEXT}, {"name": "value", **_TEXT}]},
            {"name": "extra", **_TEXT},
        ],
    },
    {"name": "__key__", **_TEXT},
    {"name": "__url__", **_TEXT},
]


def card(manifest: Manifest, most_images: int) -> str:
    """README.md of a mixture folder whose samples have up to `most_images` images.

    `configs` points HF datasets at the tars alone (other files beside them would be taken for data), and the features
    are declared because they cannot be inferred where a mixture begins with text or has samples of fewer images.
    """
    total = manifest.total
    config: dict[str, Any] = {"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}
    head: dict[str, Any] = {"configs": [config], "license": "other", "pretty_name": manifest.name}
    if manifest.kind == "mixture":
        images = [image_member("", number)[1:] for number in range(most_images)]
        head["dataset_info"] = {"features": [{"name": name, "dtype": "image"} for name in images] + _FEATURES}
    else:
        files = f"{SAMPLES_NAME}/*.parquet" if manifest.samples > schema.PART_ROWS else SAMPLES_NAME
        config["data_files"] = [{"split": "train", "path": files}]
    lines = opening(head, manifest, _about(manifest))
    if isinstance(merged := manifest.recipe.get("mixtures"), dict):
        parts = (f"{markdown_code(name)} ({part['samples']:,} samples)" for name, part in merged.items())
        lines += ["", f"Merged from {', '.join(parts)}; `manifest.json` has their recipes and inputs."]
    if manifest.check == "header":
        lines += ["", "Images were checked by their headers (`--check header`): cut or damaged ones may be among them."]
    dropped = sum(sum(reasons.values()) for reasons in manifest.rejects.values())
    if dropped:
        lines += ["", f"{dropped:,} records or rounds were dropped; `rejects.parquet` lists each with its reason."]
    for each in manifest.recipe.get("decontaminate", ()):
        if each["drop"]:
            name = markdown_code(f"{each['benchmark']} {each['split']}".strip())
            lines += ["", f"Samples that overlap with {name} by {' or '.join(each['drop'])} were left out."]
    if total.samples_per_epoch != total.samples:
        lines += [
            "",
            "Some samples are to be seen more than once per epoch: column `repeat` of `samples.parquet`. "
            "The shards hold each of them once.",
        ]
    lines += ["", "Every source keeps its own license; the mixture adds none."]
    return "\n".join(lines) + "\n"


def opening(head: dict[str, Any], manifest: Manifest, about: str) -> list[str]:
    """The lines with which a card begins: `head` as YAML for the Hub, the name, what it is, the composition."""
    plain = visible(manifest.name) == manifest.name
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=plain).rstrip()
    return ["---", front, "---", "", f"# {markdown(manifest.name)}", "", about, "", *composition(manifest)]


def composition(manifest: Manifest) -> list[str]:
    """Lines of Markdown: the sources with their counts and licenses, prompt style, order and seed. Names and licenses
    are text there, never markup."""
    total = manifest.total
    lines = [
        "| source | samples | share | per epoch | rounds | words | images | license |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, info in manifest.sources.items():
        share = f"{100 * info.counts.samples / max(total.samples, 1):.1f}"
        label = markdown_link(name, info.homepage)
        lines.append(f"{_counts_row(label, share, info.counts)} {markdown(info.license)} |")
    lines += [
        f"{_counts_row('**total**', '100', total)} |",
        "",
        f"Prompt style: {markdown_code(str(manifest.recipe['prompts']))}. "
        f"Order: {markdown_code(str(manifest.recipe['order']))}. Seed: {manifest.seed}.",
    ]
    return lines


def _counts_row(label: str, percent: str, c: Counts) -> str:
    counts = f"{c.samples_per_epoch:,} | {c.rounds:,} | {c.words:,} | {c.images:,}"
    return f"| {label} | {c.samples:,} | {percent} % | {counts} |"


def _about(manifest: Manifest) -> str:
    match manifest.kind:
        case "mixture":
            return (
                "A vision-language mixture in WebDataset form: `train/*.tar` hold `{key}.jpg` (absent for text-only "
                "samples), `{key}.1.jpg` … where a sample has more images, and `{key}.json`; `samples.parquet` is the "
                "index, `manifest.json` the recipe and checksums."
            )
        case "view":
            parent = markdown_code(manifest.parent.path if manifest.parent else "")
            return (
                f"A subset of the mixture in {parent}, whose shards it uses; `samples.parquet` lists its samples. "
                "`vlmix subsample --materialize` writes shards of its own."
            )
        case _:
            return "The texts of a vision-language mixture without its images: `samples.parquet` holds them all."
