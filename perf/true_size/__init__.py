"""Releases of true size, generated source by source."""
