"""The `vlmix` command."""
