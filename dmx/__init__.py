"""Carry what one 3D network has learned over to the next task.

As functions, for notebooks: :func:`load_model`, :func:`plan_transfer`, :func:`freeze`, :func:`train`, :func:`finetune`,
:func:`resume`, :func:`predict`, :func:`evaluate`, :func:`history`, :func:`export`, :func:`activations`, :func:`ablate`,
:func:`ablated`, :func:`probe`. They do what the commands of the same names do. Each is loaded when it is first used.
"""

import os

# As typing's, which would be looked for in the working folder first by 'python -m dmx'.
TYPE_CHECKING = False

# Large tensors on large memory pages, which torch asks for when it first allocates: on a CPU every layer's features are
# new memory, and entering its pages one by one costs up to a fifth of a prediction.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

__all__ = [
    "DmxError",
    "__version__",
    "ablate",
    "ablated",
    "activations",
    "evaluate",
    "export",
    "finetune",
    "freeze",
    "history",
    "load_model",
    "plan_transfer",
    "predict",
    "probe",
    "resume",
    "train",
]

# Names must differ from those of the subpackages: importing a subpackage puts it here under its own name.
_HOMES = {
    "DmxError": "dmx.errors",
    "ablate": "dmx.api.looking",
    "ablated": "dmx.api.looking",
    "activations": "dmx.api.looking",
    "evaluate": "dmx.api.runs",
    "export": "dmx.api.models",
    "finetune": "dmx.api.runs",
    "freeze": "dmx.api.frozen",
    "history": "dmx.api.runs",
    "load_model": "dmx.api.models",
    "plan_transfer": "dmx.api.transfers",
    "predict": "dmx.api.runs",
    "probe": "dmx.api.looking",
    "resume": "dmx.api.runs",
    "train": "dmx.api.trainings",
}

if TYPE_CHECKING:
    from dmx.api.frozen import freeze
    from dmx.api.looking import ablate, ablated, activations, probe
    from dmx.api.models import export, load_model
    from dmx.api.runs import evaluate, finetune, history, predict, resume
    from dmx.api.trainings import train
    from dmx.api.transfers import plan_transfer
    from dmx.errors import DmxError
else:

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'dmx' has no attribute '{name}'")
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
