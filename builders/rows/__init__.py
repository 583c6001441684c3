"""Rows in whatever table people keep them: how they are recognised and read into rounds. See `sources.rows`."""
