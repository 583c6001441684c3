"""Official file schemas, each once."""
