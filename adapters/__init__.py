"""One file per tensor library behind one small interface (base.py). Knows nothing of tasks."""
