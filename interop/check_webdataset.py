"""Stock webdataset and HF datasets on mixtures, on shards with other tools' files beside them, and on `--to hf`,
`texts` and `messages`."""

import json
import tempfile
from typing import Any

import datasets
import webdataset
from common import MADE, cases, chat, members, repeated, report, run_docs, same, sha256, sha256s, sizes, texts

datasets.disable_progress_bars()

for case in ("whole", "several", "repeated"):
    samples = json.loads((MADE / f"{case}.json").read_text(encoding="utf-8"))
    wanted = {sample["id"]: sample for sample in samples}
    shards = sorted(str(path) for path in (MADE / "mixtures" / case / "train").glob("*.tar"))
    count = 0
    for found in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        row = found["json"]
        sample = wanted[row["id"]]
        same(f"{case}: {row['id']}: texts", row["conversations"], sample["conversations"])
        same(f"{case}: {row['id']}: sizes", [image.size for image in members(found)], sizes(sample))
        count += 1
    for found in webdataset.WebDataset(shards, shardshuffle=False):
        sample = wanted[json.loads(found["json"])["id"]]
        same(f"{sample['id']}: images", [sha256(jpeg) for jpeg in members(found)], sha256s(sample))
    same(f"{case}: samples", count, len(samples))
    report("webdataset", case, samples, count)

# dali and wids leave files beside the tars that datasets takes for data unless the card says what data is.
places = [f"{case}/{form}" for case in ("whole", "several") for form in ("energon", "dali", "wids")]
for folder in ("mixtures/whole", "mixtures/several", "mixtures/repeated", *places):
    case = folder.removeprefix("mixtures/").split("/")[0]
    samples = json.loads((MADE / f"{case}.json").read_text(encoding="utf-8"))
    for streaming in (False, True):
        with tempfile.TemporaryDirectory() as cache:
            data = datasets.load_dataset(str(MADE / folder), split="train", cache_dir=cache, streaming=streaming)
            wanted = {sample["id"]: sample for sample in samples}
            for found in data:
                sample = wanted.pop(found["json"]["id"])
                same(f"{sample['id']}: texts", found["json"]["conversations"], sample["conversations"])
                same(f"{sample['id']}: sizes", [image.size for image in members(found)], sizes(sample))
            same(f"{folder}: samples left", list(wanted), [])
    report("datasets", folder, samples, len(samples))


def wanted_hf(sample: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "source", "width", "height", "response_formats", "boxes")
    values = [turn["value"] for turn in sample["conversations"]]
    lacking = len(sample["images"]) - "".join(values).count("<image>")
    values[0] = "<image>\n" * max(lacking, 0) + values[0]
    said = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {**{name: sample[name] for name in names}, "conversations": said}


def wanted_texts(sample: dict[str, Any]) -> dict[str, Any]:
    values = [turn["value"] for turn in sample["conversations"]]
    if "inline" not in sample["extra"]:
        question, *others = texts(sample)
        said = question.replace("<image>\n", "").replace("\n<image>", "")
        if "<image>" not in said and not any("<image>" in other for other in others):
            values[0] = values[0] if "<" in said and not sample["images"] else said
    pairs = [{"user": user, "assistant": answer} for user, answer in zip(values[::2], values[1::2])]
    return {"id": sample["id"], "source": sample["source"], "texts": pairs}


def wanted_messages(sample: dict[str, Any]) -> dict[str, Any]:
    said = chat(sample, with_system=True)
    return {"id": sample["id"], "source": sample["source"], "messages": [{"role": r, "content": c} for r, c in said]}


WANTED = {"hf": wanted_hf, "texts": wanted_texts, "messages": wanted_messages}
for form, wanted_of in WANTED.items():
    for case, folder, samples in cases(form):
        with tempfile.TemporaryDirectory() as cache:
            for streaming in (False, True):
                data = datasets.load_dataset(str(folder), split="train", cache_dir=cache, streaming=streaming)
                raw = data.cast_column("images", datasets.List(datasets.Image(decode=False)))
                same(f"{case}: rows", sum(1 for _ in raw), len(repeated(samples)))
                for found, decoded, sample in zip(raw, data, repeated(samples)):
                    if form == "messages":  # a block with a null text is an image
                        for message in found["messages"]:
                            same(
                                f"{sample['id']}: blocks",
                                {block["type"] for block in message["content"]} <= {"image", "text"},
                                True,
                            )
                            message["content"] = "".join(block["text"] or "<image>" for block in message["content"])
                    for name, value in (wanted_of(sample) | sample["columns"]).items():
                        same(f"{case}, {form}: {sample['id']}: {name}", found[name], value)
                    shas = [sha256(image["bytes"]) for image in found["images"]]
                    same(f"{case}, {form}: {sample['id']}: images", shas, sha256s(sample))
                    found_sizes = [image.size for image in decoded["images"]]
                    same(f"{case}, {form}: {sample['id']}: sizes", found_sizes, sizes(sample))
        report(f"datasets, --to {form}", case, samples, len(repeated(samples)))

run_docs("webdataset", {"mixture": "mixtures/whole"})
run_docs("HF datasets", {"mixture": "mixtures/whole", "hf": "whole/hf"})
