"""Benchmarks of one's own: a YAML file that names questions and a metric."""
