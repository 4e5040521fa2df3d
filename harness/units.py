"""Bytes in the units that people read."""

MIB = 1024**2
GIB = 1024**3
