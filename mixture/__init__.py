"""Mixtures: records, recipes, builds, the folder on disk, subsets, schedules and exports. Without torch."""
