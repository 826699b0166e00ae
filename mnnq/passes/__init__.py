"""Rewrites of the graph (before lowering) and of the model (after it); one file per rewrite."""
