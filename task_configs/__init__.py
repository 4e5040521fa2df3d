"""Task files in lm-eval's YAML, and the few functions that they name."""
