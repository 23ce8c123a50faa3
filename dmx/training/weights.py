"""Weights by name in safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dmx.errors import CheckpointError


class WeightsFile:
    """The weights of safetensors files, each read when it is asked for.

    Args:
        paths: The file, or several that hold the weights together; the first one that has a name counts.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            CheckpointError: A file cannot be read, or none has such a tensor.
        """
        from safetensors import SafetensorError, safe_open

        for path in self._paths:
            try:
                with safe_open(path, framework="pt") as file:
                    if name in file.keys() or path == self._paths[-1]:  # noqa: SIM118  # it is no dict
                        tensor: Tensor = file.get_tensor(name)
                        return tensor
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"'{path}' cannot be read as weights: {error}.") from error
        raise CheckpointError(f"There is no file that could hold '{name}'.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file by name.

    Raises:
        CheckpointError: It cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read as weights: {error}.") from error
    return tensors


def weights_bytes(tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file of tensors by name, with texts in its header."""
    from safetensors.torch import save

    whole: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # The weights of a module that is registered twice stand in the state dict twice, which safetensors refuses.
        whole[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    data: bytes = save(whole, None if metadata is None else dict(metadata))
    return data


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are of one type and shape and have the same bytes; NaN equals itself, -0 is not 0."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    raw = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*raw)
