"""Training sources: official files in, conversations out."""
