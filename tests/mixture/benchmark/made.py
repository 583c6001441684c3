"""Scores of models that do not exist, for the tests of statistics."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vlmix.mixture.benchmark.values import Values


def values_of(
    value: Sequence[float],
    clusters: Sequence[object] | None = None,
    groups: Sequence[object] | None = None,
    weight: Sequence[float] | None = None,
    *,
    summed: bool = False,
    questions: Sequence[object] | None = None,
    answered: Sequence[bool] | None = None,
) -> Values:
    count = len(value)
    names = [str(number) for number in (range(count) if questions is None else questions)]
    return Values(
        pa.table(
            {
                "question": names,
                "cluster": names if clusters is None else [str(cluster) for cluster in clusters],
                "group": [""] * count if groups is None else [str(group) for group in groups],
                "value": np.asarray(value, dtype=np.float64),
                "weight": np.ones(count) if weight is None else np.asarray(weight, dtype=np.float64),
                "answered": [True] * count if answered is None else list(answered),
            }
        ),
        summed,
    )
