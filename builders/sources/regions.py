"""Region exchanges, which Visual Genome and RefCOCO share: a phrase and a box, asked in either direction."""

from vlmix.mixture.record import Box, Exchange


def region(phrase: str, box: Box, grounding: bool) -> Exchange:
    """`phrase` is one that `builders.text.phrase` has cleaned. `grounding`: the box is asked for; else the phrase, as
    `str.capitalize()` and a full stop."""
    if grounding:
        return Exchange(phrase, "", "grounding", boxes=(box,))
    return Exchange("", f"{phrase.capitalize()}.", "region_caption", boxes=(box,))
