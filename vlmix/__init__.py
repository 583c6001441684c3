"""vlmix: what vision-language data is worth.

The public door: `open` reads a mixture, `blend` several with weights, `build` makes one, `merge` one of several,
`vlmix.torch` feeds a training loop. Importing this loads neither torch nor polars.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlmix.mixture.blend import Blend, blend
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import Mixture, open
from vlmix.mixture.version import VERSION as __version__

__all__ = ["Blend", "Mixture", "Sample", "VlmixError", "__version__", "blend", "build", "merge", "open"]


def build(
    recipe: str | Path,
    raw: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    images: Sequence[str | Path] = (),
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    annotations_only: bool = False,
    check: Literal["full", "header"] = "full",
) -> Mixture:
    """Build the mixture folder `out`, as `vlmix build RECIPE KEY=VALUE ... --raw RAW --out OUT` does, and open it.

    `recipe` is a YAML file or the name of a recipe that comes with vlmix, `raw` the folder with the official files.
    `raw` and `images` may be URLs of stores, such as `s3://bucket/raw`.
    With `check="header"` no JPEG is decoded, and cut ones get through. `workers` are processes (None: this one alone);
    with `engine="ray"` tasks run on the Ray cluster at RAY_ADDRESS, `workers` at a time (None: two for each CPU).
    Raises VlmixError for bad input. With more than one worker, call it below `if __name__ == "__main__":`.
    """
    from vlmix.builders import benchmark_named, known_sources
    from vlmix.builders.layout import picture_id
    from vlmix.cli.recipes import DATA, find
    from vlmix.mixture.build.build import build as make
    from vlmix.mixture.build.recipe import load

    parsed = load(find(DATA, str(recipe)), known_sources(), list(overrides))
    make(
        parsed,
        known_sources(),
        raw,
        Path(out),
        images=list(images),
        workers=workers,
        engine=engine,
        annotations_only=annotations_only,
        check=check,
        benchmark=benchmark_named,
        picture_id=picture_id,
    )
    return open(out)


def merge(
    mixtures: Sequence[str | Path] | Mapping[str, Any] | str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    copy: bool = False,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
) -> Mixture:
    """Make mixtures one, the new folder `out`, as `vlmix merge MIXTURE ... KEY=VALUE ... --out OUT` does, and open it.

    `mixtures` are folders, how much of each (`{"mix665k": {}, "mine": {"ratio": 0.1}}`), or a YAML file. Shards are
    hard-linked where the file system allows it; with `copy` they are copied; `workers` and `engine` are as in `build`.
    Raises VlmixError for mixtures that do not go together. With more than one worker, call it below
    `if __name__ == "__main__":`.
    """
    from vlmix.mixture.merge.merge import merge as make
    from vlmix.mixture.merge.recipe import load

    named = mixtures if isinstance(mixtures, Mapping) else [mixtures] if isinstance(mixtures, str | Path) else mixtures
    make(load(named, overrides), Path(out), copy=copy, workers=workers, engine=engine)
    return open(out)
