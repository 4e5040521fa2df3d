"""Documents of the tasks: official files, the hub's parquet branch and the bundled mini set.

Importing this package loads neither pyarrow nor huggingface_hub; both wait for the first split that needs them.
"""

from __future__ import annotations

from harness.data.sources import Split, cached_split, fingerprint, load_split

__all__ = ["Split", "cached_split", "fingerprint", "load_split"]
