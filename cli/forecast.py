"""What `vlmix train --dry-run` prints."""

from typing import TYPE_CHECKING

import msgspec

from vlmix.cli import show

if TYPE_CHECKING:
    from vlmix.train.forecast import Forecast

_MEMORY = {
    "weights": "weights, fp32",
    "frozen_tower": "frozen vision tower",
    "gradients": "gradients, fp32",
    "optimizer": "AdamW's moments",
    "gathered": "gathered weights, gradients underway",
    "activations": "activations",
    "logits": "logits",
}


def forecast(found: "Forecast", as_json: bool) -> None:
    if as_json:
        plain = msgspec.to_builtins(found)
        plain["memory"]["total"] = found.memory.total
        show.done("", plain, True)
        return
    processes = f"{found.world} process{'es' if found.world > 1 else ''}"
    show.say(f"{found.name} on {found.mixture}, {processes}: calculated, not measured\n")
    table = show.table_of("part", "trained", "frozen")
    for part, count in sorted(found.parameters.items()):
        show.add(table, part, f"{count['trained']:,}", f"{count['frozen']:,}")
    show.out.print(table)
    show.say(f"\n{_data(found)}\n")
    _sources(found)
    micro = found.micro_batches
    counts = (
        f"{micro.least}" if micro.least == micro.most else f"{micro.least} to {micro.most}, {micro.mean:.2f} on average"
    )
    show.say(
        f"\nmicro-batches per step and process (gradient accumulation): {counts}\n"
        f"padding {100 * found.padding_waste:.1f} %, imbalance {found.imbalance:.3f}\n"
    )
    table = show.table_of("part", "memory of a process")
    for name, label in _MEMORY.items():
        show.add(table, label, _bytes(getattr(found.memory, name)))
    show.add(table, "at most", _bytes(found.memory.total))
    show.out.print(table)
    show.say(f"\na checkpoint: {_bytes(found.checkpoint_bytes)}")
    if (time := found.time) is not None:
        show.say(
            f"on {time.gpu} at {100 * time.efficiency:g} % of {time.peak_tflops:g} TFLOP/s: {time.step_seconds:,.2f} s "
            f"a step, {time.tokens_per_second:,.0f} tokens/s, {time.hours:,.1f} hours in all"
        )


def _data(found: "Forecast") -> str:
    lines = [
        f"{found.samples:,} samples, {found.steps_per_epoch:,} steps an epoch, {found.steps:,} steps in all; "
        "an average step of the first epoch:"
    ]
    if found.skipped_samples:
        lines.insert(0, f"{found.skipped_samples:,} samples are skipped: their images do not fit into batch.max_length")
    if found.tokenized_samples < found.samples + found.skipped_samples:
        lines.insert(
            0, f"text lengths are estimated from {found.tokenized_samples:,} samples; --sample 0 tokenizes all of them"
        )
    for mixture in found.mixtures:
        share = f"weight {mixture['weight']:g}" if "weight" in mixture else f"repeat {mixture['repeat']:g}"
        lines.insert(
            0, f"{mixture['name']}: {share}, {mixture['epochs']:,.2f} epochs of {mixture['samples']:,} samples"
        )
    return "\n".join(lines)


def _sources(found: "Forecast") -> None:
    table = show.table_of("source", "samples", "tokens", "image tokens", "target tokens", "TFLOP", "share")
    for name, part in [*found.sources.items(), ("total", found.step)]:
        counts = (part.tokens, part.image_tokens, part.target_tokens)
        share = f"{100 * part.tflop / found.step.tflop:.1f} %"
        show.add(
            table, name, f"{part.samples:,.1f}", *(f"{count:,.0f}" for count in counts), f"{part.tflop:,.4g}", share
        )
    show.out.print(table)


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
