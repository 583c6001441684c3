"""The trainer's room. It imports `mixture` only, never `builders`."""
