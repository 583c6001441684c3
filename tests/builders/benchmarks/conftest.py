"""Whatever these tests score, its parts must add up to it."""

from collections.abc import Iterator
from typing import Any

import pytest

from vlmix.mixture.benchmark.benchmark import Benchmark, Scored

# Counts, and a statistic that is no mean of anything.
WITHOUT_INTERVAL = ("without a letter", "distribution (lower is better)", "yes ratio")


@pytest.fixture(autouse=True)
def _every_score_adds_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Official scores are computed by their own rules, values question by question: both ends meet here."""
    plain = Benchmark.scored

    def scored(self: Benchmark, *arguments: Any, **options: Any) -> Scored:
        found = plain(self, *arguments, **options)
        report, values = found
        assert values is not None, f"{self.name} does not say what each question adds"
        by_question = report.metrics.get("by id, not by place", report.score)  # POPE's own script goes by place
        assert values.score() == pytest.approx(by_question, abs=0.06), "official scores are rounded to a digit"
        assert report.interval is not None or not report.answered
        if report.interval is not None:
            low, high = report.interval
            assert low - 0.06 <= report.score <= high + 0.06
        bare = {name for name, value in report.metrics.items() if value >= 0 and name not in report.intervals}
        # Precision is 0 of nothing where no answer is yes.
        bare -= {name for name in bare if name.endswith("precision") and not report.metrics[name]}
        assert not {name for name in bare if not name.endswith(WITHOUT_INTERVAL)}, bare
        return found

    monkeypatch.setattr(Benchmark, "scored", scored)
    yield
