"""A model's vocabulary made to fit Russian: measured, extended, pruned."""
