"""Rows of whatever file people keep them in, and the images that lie in these files."""
