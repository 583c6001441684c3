"""Differences in words and in cells of text, for the terminal and for reports."""

from vlmix.mixture.benchmark.compare import ALPHA, Comparison, Estimate


def signed(estimate: Estimate, digits: int = 1) -> str:
    """`+1.2 ± 3.4`: a difference and half of its 95 % interval."""
    half = (estimate.high - estimate.low) / 2
    return f"{estimate.value:+.{digits}f} ± {half:.{digits}f}"


def p_value(p: float) -> str:
    """`0.031`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def verdict(estimate: Estimate, adjusted: float) -> str:
    """`higher`, `lower`, `no difference shown`, or `equal`."""
    if adjusted >= ALPHA:
        return "no difference shown" if estimate.value or estimate.stderr else "equal"
    return "higher" if estimate.value > 0 else "lower"


def needed(count: int | None, questions: int) -> str:
    """How many questions would tell a difference, where there are not enough."""
    if count is None:
        return "more seeds"
    return "" if count <= questions else f"{count:,}"


def difference_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a benchmark each, and the overall difference in percent."""
    header = ["benchmark", "first", "second", "difference", "p", "verdict", "questions", "needed"]
    rows = []
    for each in comparison.differences:
        asked = f"{each.questions:,}" + (f" of {each.asked:,}" if each.questions < each.asked else "")
        rows.append(
            [
                each.benchmark,
                f"{each.a:,.2f}",
                f"{each.b:,.2f}",
                signed(each.difference, 2),
                p_value(each.difference.p),
                verdict(each.difference, each.adjusted),
                asked,
                needed(each.needed, each.questions),
            ]
        )
    if comparison.overall is not None and len(comparison.differences) > 1:
        whole, adjusted = comparison.overall, comparison.overall_adjusted
        marked = verdict(whole, whole.p if adjusted is None else adjusted)
        rows.append(["overall, %", "", "", signed(whole, 2), p_value(whole.p), marked, "", ""])
    return header, rows


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of a comparison."""
    more = "" if comparison.overall_adjusted is None else ", the overall one all comparisons of the sweep"
    lines = [f"± is half of the 95 % interval; a verdict counts all benchmarks of the table (Holm){more}"]
    if any(each.difference.seeds < 2 for each in comparison.differences):
        lines.append("one seed: the interval is over questions alone; how much seeds differ is unknown")
    if fewer := [each for each in comparison.differences if each.questions < each.asked]:
        counts = ", ".join(f"{each.benchmark}: {each.questions:,} of {each.asked:,}" for each in fewer)
        lines.append(f"compared on the questions that all answered ({counts}); scores are those of these questions")
    if comparison.left_out and len(comparison.differences) > 1:
        lines.append(f"without {', '.join(comparison.left_out)} in the overall difference, where one scores 0")
    if comparison.unshared:
        lines.append(f"only one has {', '.join(comparison.unshared)}")
    return lines
