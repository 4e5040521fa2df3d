"""Fit a model's vocabulary to Russian: measure it, extend it, prune it."""
