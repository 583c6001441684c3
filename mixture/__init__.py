"""Records, recipes, sampling, shards: from conversations to a mixture on disk. Knows no dataset by name, no torch."""

from mixture.errors import VlmixError
from mixture.reader import Mixture, RawSample, Sample, open

__all__ = ["Mixture", "RawSample", "Sample", "VlmixError", "open"]
