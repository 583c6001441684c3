"""lmms-eval: its clustered standard error, its paired test and its power analysis on vlmix's values of questions.

Only `lmms_eval/api/metrics.py` is loaded. The registry that it names its metrics to would bring torch and every model.
"""

import json
import math
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

MADE = """
import json
import numpy as np
import pyarrow as pa
from vlmix.mixture.benchmark.compare import Run, difference
from vlmix.mixture.benchmark.intervals import influence
from vlmix.mixture.benchmark.values import Values

random = np.random.default_rng(0)
found = []
for questions, images in ((300, 300), (300, 40), (2000, 24)):
    image = np.arange(questions) if images == questions else random.integers(0, images, questions)
    hard = random.random(questions) + 0.2 * random.random(images)[image]
    a, b = (hard < 0.62) * 1.0, ((hard + random.normal(0, 0.1, questions)) < 0.6) * 1.0
    names = [str(number) for number in range(questions)]

    def values(scores, clusters):
        return Values(pa.table({"question": names, "cluster": [str(c) for c in clusters], "group": [""] * questions,
            "value": scores, "weight": np.ones(questions), "answered": [True] * questions}))

    alone = difference("x", [Run(0, {"x": values(a, names)})], [Run(0, {"x": values(b, names)})])
    found.append({
        "a": a.tolist(), "b": b.tolist(), "image": image.tolist(), "images": len(set(image.tolist())),
        "clustered": influence(values(a, image)).stderr, "needed": alone.needed,
        "value": alone.difference.value, "stderr": alone.difference.stderr, "p": alone.difference.p,
        "low": alone.difference.low, "high": alone.difference.high,
    })
print(json.dumps(found))
"""


def main() -> None:
    registry = ModuleType("lmms_eval.api.registry")
    registry.register_metric = registry.register_aggregation = lambda *_, **__: lambda function: function  # type: ignore[attr-defined]
    sys.modules["lmms_eval.api.registry"] = registry
    from lmms_eval.api.metrics import clustered_stderr, paired_ttest, power_analysis

    made = subprocess.run([os.environ["VLMIX_PYTHON"], "-c", MADE], check=True, capture_output=True, text=True)
    for case in json.loads(made.stdout):
        questions, images = len(case["a"]), case["images"]
        if images == questions:
            factor = 1.0  # its formula has the factor for independent questions alone
        else:
            # It takes the variance with n - 1 where the sum of the cross terms has n, and has no factor for few images.
            mean = sum(case["a"]) / questions
            squares = sum((score - mean) ** 2 for score in case["a"])
            theirs = clustered_stderr(case["a"], case["image"]) ** 2 - squares / questions / (questions - 1)
            near("cross terms", theirs + squares / questions**2, (case["clustered"] / 100) ** 2 * (images - 1) / images)
            factor = math.sqrt(images / (images - 1))
        near("clustered", 100 * factor * clustered_stderr(case["a"], case["image"]), case["clustered"], 0.01)
        test = paired_ttest(case["b"], case["a"])
        for ours, theirs in (("value", "mean_diff"), ("stderr", "se_diff"), ("low", "ci_lower"), ("high", "ci_upper")):
            near(ours, 100 * test[theirs], case[ours])
        near("p", test["p_value"], case["p"], 1e-6)
        spread = test["se_diff"] * math.sqrt(questions)
        power: dict[str, Any] = power_analysis(test["mean_diff"], spread, spread, correlation=0.5)
        assert abs(power["min_n"] - case["needed"]) <= 1, (power["min_n"], case["needed"])
    print("lmms-eval: standard errors, paired test and numbers of questions agree")


def near(what: str, theirs: float, ours: float, within: float = 1e-9) -> None:
    assert math.isclose(theirs, ours, rel_tol=within, abs_tol=1e-12), (what, theirs, ours)


if __name__ == "__main__":
    sys.exit(main())
