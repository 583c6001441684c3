"""Region rounds, which Visual Genome and RefCOCO share: a phrase and a box, asked in either direction."""

from vlmix.mixture.record import Box, Round


def region(phrase: str, box: Box, grounding: bool) -> Round:
    """`phrase` is one that `builders.text.phrase` has cleaned. `grounding`: the box is asked for; else the phrase, as
    `str.capitalize()` and a full stop."""
    if grounding:
        return Round(phrase, "", "grounding", boxes=(box,))
    return Round("", f"{phrase.capitalize()}.", "region_caption", boxes=(box,))
