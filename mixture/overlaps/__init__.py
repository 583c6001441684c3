"""What of a mixture is there twice, and what of it is in an evaluation set."""
