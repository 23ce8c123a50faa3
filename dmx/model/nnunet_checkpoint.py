"""What nnU-Net v2 keeps in ``checkpoint_final.pth``: weights, and a copy of the plans that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dmx.model.nnunet_plans import turn_kernel, turned_axes

_WEIGHTS = "network_weights"
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True)
class NnUNetCheckpoint:
    """A checkpoint of nnU-Net.

    Attributes:
        weights: Tensors by name, each once, in nnU-Net's axes.
        prefix: What stood before all names and was removed.
        plans: Content of ``plans.json``; empty where the checkpoint has none.
        dataset: Content of ``dataset.json``; empty where the checkpoint has none.
        configuration: Name of the configuration that was trained, if it says so.
        fold: Fold that was left out of the training, if it says so.
        trainer: Name of the trainer's class, if it says so.
        epochs: Epochs that were trained, if it says so.
        mirror_axes: nnU-Net's axes along which predictions may be mirrored.
    """

    weights: Mapping[str, Tensor]
    prefix: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: str | None
    fold: str | None
    trainer: str | None
    epochs: int | None
    mirror_axes: tuple[int, ...]

    def turned(self) -> dict[str, Tensor]:
        """Return the weights for a network that reads (i, j, k)."""
        axes = turned_axes(self.plans)
        return {name: turn_kernel(tensor, axes) for name, tensor in self.weights.items()}


def as_nnunet_checkpoint(content: object) -> NnUNetCheckpoint | None:
    """Return the content of a torch file as a checkpoint of nnU-Net; ``None``: it is none."""
    if not isinstance(content, Mapping) or not isinstance(content.get(_WEIGHTS), Mapping):
        return None
    tensors = {str(name): value for name, value in content[_WEIGHTS].items() if isinstance(value, Tensor)}
    settings = _mapping(content.get("init_args"))
    if not tensors or not (settings or "trainer_name" in content):
        return None
    prefix = _prefix(tensors)
    epochs, axes = content.get("current_epoch"), content.get("inference_allowed_mirroring_axes")
    return NnUNetCheckpoint(
        weights=_once({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}),
        prefix=prefix,
        plans=_mapping(settings.get("plans")),
        dataset=_mapping(settings.get("dataset_json")),
        configuration=_text(settings.get("configuration")),
        fold=_text(settings.get("fold")),
        trainer=_text(content.get("trainer_name")),
        epochs=epochs if isinstance(epochs, int) else None,
        mirror_axes=tuple(axis for axis in axes if isinstance(axis, int)) if isinstance(axes, list | tuple) else (),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) else None


def _prefix(names: Mapping[str, Tensor]) -> str:
    """Return what wrappers of torch put before all names."""
    prefix = ""
    while found := next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in names)), ""):
        prefix += found
    return prefix


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without those that are another one's values under a further name."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if place not in seen or not tensor.numel():
            kept[name] = tensor
        seen.add(place)
    return kept
