"""Quantised copies of models, task heads included."""
