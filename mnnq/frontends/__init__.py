"""Readers of other model formats; one package per source format."""
