"""What a run trains on: one mixture, or several with weights (`mixture.blend`)."""

import json
import re
import shlex
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.blend import Blend, Samples, origin, parts_of, places
from vlmix.mixture.dataset.schema import MOST_REPEATS
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.overlaps.table import identity
from vlmix.mixture.schedule.blend import BlendSchedule
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.mixture.schedule.trees import Sharing
from vlmix.train.batches import Lengths
from vlmix.train.config import Recipe

_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?huggingface\.co/)datasets/([\w.-]+/[\w.-]+)")
"""The address of a data set on the hub."""


def check(samples: Samples, recipe: Recipe) -> None:
    """Raise VlmixError for a mixture that cannot be trained on, by name."""
    for place, mixture in zip(places(recipe.mixture), parts_of(samples)):
        images = pc.not_equal(mixture.column("image"), "").to_numpy()
        if mixture.root_manifest.kind == "annotations":
            raise VlmixError(f"{place} was built with --annotations-only: it has no shards to train on")
        if recipe.template == "plain" and not images.all():
            first = mixture.column("id")[int(np.argmin(images))].as_py()
            some = "no images at all" if not images.any() else f"samples without an image, such as {first}"
            raise VlmixError(f"{place} has {some}; stage one (template: plain) needs one in every sample")


def named(recipe: Recipe) -> str:
    return " and ".join(places(recipe.mixture))


def name_of(samples: Samples) -> str:
    return " + ".join(samples.mixtures) if isinstance(samples, Blend) else samples.manifest.name


def fitting(samples: Samples, found: Lengths, recipe: Recipe) -> Samples:
    """The samples of these lengths whose images fit into batch.max_length. Raises VlmixError where none do."""
    if not found.fits.any():
        raise VlmixError(
            f"{named(recipe)}: no sample's images fit into batch.max_length {recipe.batch.max_length}; raise it (the "
            f"shortest sample has {found.untruncated.min()} tokens)"
        )
    return samples if found.fits.all() else samples.select(np.flatnonzero(found.fits))


def schedule(samples: Samples, recipe: Recipe, lengths: NDArray[np.int64], world: int) -> Schedule:
    """The order of training on samples of these token lengths [N]. Raises VlmixError for a batch that `world` processes
    cannot share."""
    batch = recipe.batch
    order = samples.schedule(
        batch.global_size,
        seed=recipe.seed,
        lengths=lengths,
        length_window=batch.length_window,
        drop_last=batch.drop_last,
        share_images=batch.share_images,
    )
    order.rank_batch(0, 0, world)
    return order


def sharing(order: Schedule, recipe: Recipe, found: Lengths) -> Sharing | None:
    """What samples of these lengths share, where the recipe says so."""
    groups = None if recipe.batch.share_images == 1 else order.groups
    return None if groups is None else Sharing(groups, found.trunks, found.prefixes)


def shares(recipe: Recipe) -> dict[str, str]:
    """What a run's identity says of several mixtures, in their order."""
    return {} if isinstance(recipe.mixture, str) else {"shares": json.dumps(list(recipe.mixture.values()))}


def skipped(recipe: Recipe, id: str) -> dict[str, str]:
    """How `skipped.jsonl` names a sample."""
    place, own = origin(recipe.mixture, id)
    return {"id": own} if isinstance(recipe.mixture, str) else {"mixture": place, "id": own}


def sources(samples: Samples) -> dict[str, dict[str, Any]]:
    """Of each source, as metrics name it: its samples, license and homepage, and the data sets on the hub that it is
    from."""
    found = {}
    for mixture, label in zip(parts_of(samples), samples.mixtures if isinstance(samples, Blend) else [""]):
        entries = mixture.root_manifest.recipe.get("sources", {})
        for name, count in mixture.sources.items():
            info = mixture.manifest.sources[name]
            found[f"{label}/{name}" if label else name] = {
                "samples": count,
                "license": info.license,
                "homepage": info.homepage,
                "datasets": hub_datasets([info.homepage, json.dumps(entries.get(name))]),
            }
    return found


def manifests(samples: Samples) -> list[str]:
    """SHA-256 of the manifest.json of each mixture that samples come from."""
    return [identity(part) for part in parts_of(samples)]


def hub_datasets(texts: list[str]) -> list[str]:
    """The data sets on the hub whose addresses stand in some texts, `OWNER/NAME`."""
    return sorted({name for text in texts for name in _HUB.findall(text)})


def facts(samples: Samples, order: Schedule, steps: int) -> dict[str, Any]:
    """Of several mixtures: what each gives to a training of `steps` steps; and the samples that two have in common.
    Raises VlmixError where one would be seen more often than a recipe may repeat a source."""
    if not isinstance(samples, Blend) or not isinstance(order, BlendSchedule):
        return {}
    trained = order.samples_before(steps)
    each: list[dict[str, Any]] = [
        {
            "name": name,
            samples.shares.kind: samples.shares.values[number],
            "samples": len(mixture),
            "trained_samples": int(trained[number]),
            "epochs": round(int(trained[number]) / int(order.samples_per_epoch[number]), 4),
        }
        for number, (name, mixture) in enumerate(samples.mixtures.items())
    ]
    often = max(each, key=lambda one: one["epochs"])
    if often["epochs"] > MOST_REPEATS:
        raise VlmixError(
            f"{often['name']}: its {samples.shares.kind} asks for its {often['samples']:,} samples "
            f"{often['epochs']:,.0f} times, {MOST_REPEATS:,} at most; lower it"
        )
    common = [{"names": [one, other], "samples": both} for one, other, both in samples.overlaps()]
    return {"mixtures": each, **({"common": common} if common else {})}


def verify_hint(recipe: Recipe, ids: list[str]) -> str:
    """The command that looks for damage where samples are from."""
    damaged = dict.fromkeys(origin(recipe.mixture, id)[0] for id in ids)
    return " and ".join(f"`vlmix verify {place}`" for place in damaged)


def inspect_hint(recipe: Recipe, id: str) -> str:
    """The command that shows a sample."""
    place, own = origin(recipe.mixture, id)
    return f"`vlmix inspect {place} --id {shlex.quote(own)}`"
