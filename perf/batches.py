"""Training-ready batches: vlmix beside the loaders that people use, a DataLoader of two workers each.

The same photographs (640x480 generated JPEGs of about 90 KB) reach every contender in the form it wants, written before
the clock starts: the mixture's own shards for vlmix, webdataset and HF datasets, energon's export of them, MDS for
mosaicml-streaming, chunks for LitData, and for LLaVA's way a JSON list with loose files and the Hugging Face image
processor. A batch is 32 pictures padded to the square at 336 pixels: uint8 for vlmix, whose device normalises, float32
and normalised for the others, as their users' code does it: Pillow to decode, pad and resize (`PIL`), or, so that only
the loader differs, with vlmix's own image path (`+ our path`).

The limit is decoding alone: the same pictures read from the same shards and decoded to pixels in as many processes, and
nothing else. It is measured with Pillow, which vlmix decodes with, where the pixels stay in Pillow's memory without a
copy; and with simplejpeg, if that is installed, which nothing here uses, as a bound for any decoder.

The first batch of each worker is not timed: workers start at different speeds, and when the first batch is there the
others are nearly ready too. CPU is that of the main process and its workers together. `requirements-peers.txt` says how
to install the peers; a contender whose package is missing is left out.
"""

import argparse
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import resource
import sys
import types
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from common import Clock, Facts, alternate, machine, megabytes, parser, perform, photographs, run, table, work_folder

from vlmix import open as open_mixture

SAMPLES, BATCH, SIDE, WORKERS = 3_200, 32, 336, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LINES = {
    "limit": ("limit: decode alone, Pillow", None),
    "limit_simplejpeg": ("limit: decode alone, simplejpeg", "simplejpeg"),
    "vlmix": ("vlmix", None),
    "webdataset_ours": ("webdataset + our path", "webdataset"),
    "webdataset": ("webdataset, PIL", "webdataset"),
    "energon": ("energon, PIL", "megatron.energon"),
    "streaming": ("mosaicml-streaming, PIL", "streaming"),
    "litdata": ("LitData, PIL", "litdata"),
    "datasets": ("HF datasets streaming, PIL", "datasets"),
    "llava": ("LLaVA: JSON, files, HF processor", "transformers"),
}


def generate(args: argparse.Namespace) -> Facts:
    """The photographs as an OCR-VQA release, built by vlmix, then in every other form."""
    import numpy as np

    from vlmix.builders import known_sources
    from vlmix.mixture.build.build import build
    from vlmix.mixture.build.recipe import parse

    clock = Clock()
    rng = np.random.default_rng(0)
    raw = args.work / "raw"
    images = raw / "ocr_vqa/images"
    images.mkdir(parents=True)
    pool = photographs(50, rng)
    count = max(round(SAMPLES * args.scale), 8 * BATCH)
    books = {str(i): {"questions": ["Who?"], "answers": ["He"], "split": 1} for i in range(count)}
    (raw / "ocrvqa").mkdir()
    (raw / "ocrvqa/dataset.json").write_text(json.dumps(books))
    for i in range(count):
        (images / f"{i}.jpg").write_bytes(pool[i % len(pool)])
    recipe = parse({"name": "photographs", "samples_per_shard": 400, "sources": {"ocrvqa": {}}}, known_sources())
    build(recipe, known_sources(), raw, args.work / "mixture", workers=WORKERS)
    for name in available():
        if name in FORMS:
            FORMS[name](args.work)
    return clock.facts(bytes=sum(map(len, pool)) // len(pool) * count)


def _energon_form(work: Path) -> None:
    from vlmix.mixture.export import export

    export(work / "mixture", "energon", work / "energon")


def _mds_form(work: Path) -> None:

    _stub_torchvision()
    from streaming import MDSWriter

    with MDSWriter(out=str(work / "mds"), columns={"jpg": "bytes", "json": "bytes"}, size_limit=2**26) as writer:
        for raw in _raws(open_mixture(work / "mixture")):
            writer.write({"jpg": raw.jpegs[0], "json": raw.json})


def _litdata_form(work: Path) -> None:
    import litdata

    litdata.optimize(
        fn=_LitSample(work / "mixture"),
        inputs=list(range(_count(work))),
        output_dir=str(work / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


class _LitSample:
    def __init__(self, path: Path) -> None:

        self.mixture = open_mixture(path)

    def __call__(self, position: int) -> dict[str, bytes]:
        raw = self.mixture.raw(position)
        return {"jpg": raw.jpegs[0], "json": raw.json}


def _llava_form(work: Path) -> None:
    from vlmix.mixture.export import export

    export(work / "mixture", "llava-json", work / "llava.json")


FORMS: dict[str, Callable[[Path], None]] = {
    "energon": _energon_form,
    "streaming": _mds_form,
    "litdata": _litdata_form,
    "llava": _llava_form,
}


def _raws(opened: Any) -> Iterable[Any]:
    return (opened.raw(position) for position in range(len(opened)))


def _count(work: Path) -> int:

    return len(open_mixture(work / "mixture"))


def _stub_torchvision() -> None:
    """mosaicml-streaming imports torchvision for classes that are not used here; a CPU build does not exist."""
    if importlib.util.find_spec("torchvision"):
        return
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        module.__path__ = []
        sys.modules[module.__name__] = module
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def pillow(data: bytes) -> Any:
    """[3, 336, 336] float32: what throw-away code does, with Pillow and NumPy."""
    import numpy as np
    import torch
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)


def ours(data: bytes) -> Any:
    """[3, 336, 336] uint8 by vlmix's image path."""
    from vlmix.train.images import decode, to_square

    return to_square(decode(data), SIDE)


def timed(batches: Iterable[Any]) -> Facts:
    """All batches but the first of each worker; a batch is a tensor of pictures."""
    stream = iter(batches)
    for _ in range(WORKERS):
        first = next(stream)
        assert tuple(first.shape[1:]) == (3, SIDE, SIDE), first.shape
    clock = WorkersClock()
    count = sum(len(batch) for batch in stream)
    return clock.facts(samples=count)


class WorkersClock(Clock):
    """Counts the processor time of worker processes too, running and ended."""

    def __init__(self) -> None:
        super().__init__()
        self._workers = self._worked()

    def facts(self, **more: Any) -> Facts:
        found = super().facts(**more)
        return {**found, "cpu": found["cpu"] + self._worked() - self._workers}

    def _worked(self) -> float:
        ticks = 0
        for child in multiprocessing.active_children():
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ticks / os.sysconf("SC_CLK_TCK") + ended.ru_utime + ended.ru_stime


def _loader(dataset: Any, **more: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, num_workers=WORKERS, **more)


def vlmix(args: argparse.Namespace) -> Facts:
    from vlmix.torch import ImageCollator, StepDataset, make_loader

    opened = open_mixture(args.work / "mixture")
    order = opened.schedule(BATCH)
    steps = make_loader(StepDataset(opened, order, ImageCollator(SIDE)), 0, order.steps_per_epoch, WORKERS)
    return timed(batch.images for batch in steps)


def limit(args: argparse.Namespace, decode: Callable[[bytes], Any]) -> Facts:
    """Decoding in two processes, as fast as they can, nothing sent back."""
    count = _count(args.work)
    with multiprocessing.get_context("fork").Pool(WORKERS, _open, (args.work / "mixture", decode)) as pool:
        pool.map(_decode, range(WORKERS * BATCH), chunksize=BATCH)
        clock = WorkersClock()
        done = sum(pool.imap_unordered(_decode, range(count), chunksize=BATCH))
        return clock.facts(samples=done)


def _open(path: Path, decode: Callable[[bytes], Any]) -> None:
    globals().update(_mixture=open_mixture(path), _decoder=decode)


def _decode(position: int) -> int:
    globals()["_decoder"](globals()["_mixture"].raw(position).jpegs[0])
    return 1


def _pillow_alone(data: bytes) -> None:
    from PIL import Image

    Image.open(io.BytesIO(data)).load()


def _simplejpeg_alone(data: bytes) -> None:
    import simplejpeg

    simplejpeg.decode_jpeg(data)


def webdataset(args: argparse.Namespace, path: Callable[[bytes], Any] = pillow) -> Facts:
    import webdataset as wds

    shards = [str(p) for p in sorted((args.work / "mixture").glob("train/*.tar"))]
    samples = wds.WebDataset(shards, shardshuffle=False, empty_check=False).to_tuple("jpg", "json")
    batches = samples.map_tuple(path, json.loads).batched(BATCH, collation_fn=_first_of)
    return timed(wds.WebLoader(batches, batch_size=None, num_workers=WORKERS))


def _first_of(samples: list[Any]) -> Any:
    import torch

    return torch.stack([sample[0] for sample in samples])


def energon(args: argparse.Namespace) -> Facts:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        SavableDataLoader,
        WorkerConfig,
        basic_sample_keys,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return {**basic_sample_keys(sample), "image": pillow(sample["jpg"]), "json": sample["json"]}

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (Cooker(cook),)
        decoder = None

        def batch(self, samples: list[Any]) -> Any:
            return _first_of([(sample["image"],) for sample in samples])

        def encode_batch(self, batch: Any) -> Any:
            return batch

    dataset = get_train_dataset(
        str(args.work / "energon"),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
        batch_size=BATCH,
        task_encoder=Encoder(),
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
    )
    return timed(itertools.islice(SavableDataLoader(dataset), _count(args.work) // BATCH))


def streaming(args: argparse.Namespace) -> Facts:
    _stub_torchvision()
    from streaming import StreamingDataset

    class Photographs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, position: int) -> Any:
            sample = super().__getitem__(position)
            return pillow(sample["jpg"]), json.loads(sample["json"])

    dataset = Photographs(local=str(args.work / "mds"), shuffle=True, shuffle_algo="py1s", batch_size=BATCH)
    return timed(_loader(dataset, batch_size=BATCH, collate_fn=_first_of))


def litdata(args: argparse.Namespace) -> Facts:
    import litdata

    class Photographs(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return pillow(sample["jpg"]), json.loads(sample["json"])

    dataset = Photographs(str(args.work / "litdata"), shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=_first_of)
    return timed(loader)


def datasets(args: argparse.Namespace) -> Facts:
    import datasets as hf

    stream = hf.load_dataset(str(args.work / "mixture"), split="train", streaming=True)
    stream = stream.cast_column("jpg", hf.Image(decode=False))
    return timed(_loader(stream, batch_size=BATCH, collate_fn=_hf_batch))


def _hf_batch(samples: list[Any]) -> Any:
    return _first_of([(pillow(sample["jpg"]["bytes"]),) for sample in samples])


def llava(args: argparse.Namespace) -> Facts:
    from torch.utils.data import Dataset
    from transformers import CLIPImageProcessor

    class Photographs(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.rows = json.loads((args.work / "llava.json").read_text())
            self.processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            from PIL import Image

            image = Image.open(args.work / "raw" / self.rows[index]["image"]).convert("RGB")
            side = max(image.size)
            square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in MEAN))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            return (self.processor.preprocess(square, return_tensors="pt")["pixel_values"][0],)

    return timed(_loader(Photographs(), batch_size=BATCH, shuffle=True, collate_fn=_first_of))


CONTENDERS = {
    "generate": generate,
    "limit": lambda args: limit(args, _pillow_alone),
    "limit_simplejpeg": lambda args: limit(args, _simplejpeg_alone),
    "vlmix": vlmix,
    "webdataset": webdataset,
    "webdataset_ours": lambda args: webdataset(args, ours),
    "energon": energon,
    "streaming": streaming,
    "litdata": litdata,
    "datasets": datasets,
    "llava": llava,
}


def available() -> list[str]:
    """The contenders whose packages are installed."""

    def there(package: str | None) -> bool:
        try:
            return package is None or importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            return False

    return [name for name, (_, package) in LINES.items() if there(package)]


def main() -> None:
    args = parser(__doc__, repeat=3).parse_args()
    if perform(args, CONTENDERS):
        return
    packages = "torch", "pillow", "webdataset", "megatron-energon", "mosaicml-streaming", "litdata", "datasets"
    print(machine("vlmix", *packages, "transformers"))
    with work_folder(args) as work:
        options = ("--scale", str(args.scale))
        run("generate", work, *options)
        measured = alternate(available(), args.repeat, lambda name: run(name, work, *options))
    own = measured["vlmix"]
    rate = {name: found.facts["samples"] / found.seconds for name, found in measured.items()}
    rows = [
        [
            LINES[name][0],
            f"{found.seconds:.2f} .. {found.worst:.2f}",
            f"{1000 * found.cpu / found.facts['samples']:.2f}",
            f"{rate[name]:,.0f}",
            f"{rate['vlmix'] / rate[name]:.2f}x",
            megabytes(found.peak),
        ]
        for name, found in measured.items()
    ]
    print(table(["pictures in batches", "seconds", "CPU ms each", "pictures/s", "vlmix is", "main process"], rows))
    assert own.facts["samples"] > 0


if __name__ == "__main__":
    main()
