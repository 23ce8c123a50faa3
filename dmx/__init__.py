"""Carry what one 3D network has learned over to the next task."""

import os

# Large tensors on large memory pages, which torch asks for when it first allocates: on a CPU every layer's features are
# new memory, and entering its pages one by one costs up to a fifth of a prediction.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
