"""Records, recipes, sampling, shards: from conversations to a mixture on disk. Knows no dataset by name, no torch."""
