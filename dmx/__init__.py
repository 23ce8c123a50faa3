"""Carry what one 3D network has learned over to the next task."""

__version__ = "0.1.0"
