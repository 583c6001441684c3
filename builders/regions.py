"""Region exchanges, which Visual Genome and RefCOCO share: a phrase and a box, asked in either direction."""

from builders.text import phrase, sentence
from mixture.record import Box, Exchange


def region(text: str, box: Box, grounding: bool) -> Exchange:
    """`grounding`: the box is asked for; else the phrase is."""
    if grounding:
        return Exchange(phrase(text), "", "grounding", boxes=(box,))
    return Exchange("", sentence(text), "region_caption", boxes=(box,))
