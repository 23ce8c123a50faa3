"""What nnU-Net v2 writes down of a training: ``plans.json`` and ``dataset.json``, in our terms.

nnU-Net keeps arrays as (z, y, x), the reverse of the scan's (i, j, k), and then turns them by ``transpose_forward``.
Everything that follows axes is turned here, so that the network itself reads (i, j, k).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dmx.config.data import PreprocessSection
from dmx.config.dataset_labels import DatasetLabels
from dmx.config.model import ModelSection
from dmx.errors import ModelError
from dmx.geometry import Triple, triple
from dmx.model.nnunet import NETWORKS
from dmx.model.nnunet_scans import channel_names, label_names, read_preprocessing

_PACKAGE = "dynamic_network_architectures.architectures."
_ALONG_AXES = ("kernel_sizes", "strides")
# What follows from the cohort, or is the same for every network here.
_FOLLOWS = ("conv_op", "deep_supervision", "input_channels", "num_classes")
_AXES: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class NnUNetModel:
    """A configuration of nnU-Net.

    Attributes:
        name: Name of nnU-Net's dataset.
        configuration: ``3d_fullres``, ``3d_lowres``, ….
        section: The network, in axes (i, j, k).
        axes: nnU-Net's axis that becomes each of ours.
        channels: Names of the channels in order.
        labels: Classes by label, or regions, and the label of voxels that nobody annotated.
        patch: Voxels of a training patch.
        preprocess: What happens to scans; voxel size in axes (i, j, k).
        notes: What is to be said about it.
    """

    name: str
    configuration: str
    section: ModelSection
    axes: Triple
    channels: tuple[str, ...]
    labels: DatasetLabels
    patch: Triple
    preprocess: PreprocessSection
    notes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the network's outputs stand for."""
        return (*(self.labels.regions or self.labels.classes),)

    def mirrored(self, axes: Sequence[int]) -> tuple[Literal[0, 1, 2], ...]:
        """Return our axes for those along which nnU-Net mirrors."""
        return tuple(ours for ours, theirs in zip(_AXES, self.axes, strict=True) if theirs in axes)


def read_plans(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    configuration: str,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> NnUNetModel:
    """Read what a network of nnU-Net is and what it expects.

    Args:
        plans: Content of ``plans.json``.
        dataset: Content of ``dataset.json``.
        configuration: Which configuration of the plans.
        channels: Names of the channels in nnU-Net's order; empty: those of the dataset.
        classes: Names of the classes by label, or of the regions; empty: those of the dataset.

    Raises:
        ModelError: Something is missing, or is of a kind that dmx does not have; the sentence says which.
    """
    settings = _configuration(plans, configuration)
    axes = turned_axes(plans)
    patch = _numbers(settings, "patch_size", configuration)
    if len(patch) != 3:
        raise ModelError(f"Configuration {configuration} is 2D, and networks of dmx read volumes. Import a 3D one.")
    if settings.get("previous_stage"):
        raise ModelError(
            f"Configuration {configuration} is the second step of a cascade and reads the result of "
            f"'{settings['previous_stage']}' as well, which dmx does not offer. Import 3d_fullres or 3d_lowres."
        )
    spacing = _turned(_numbers(settings, "spacing", configuration), axes)
    named, notes = channel_names(dataset, channels)
    labels = label_names(dataset, classes)
    preprocess, scan_notes = read_preprocessing(plans, settings, channels=named, spacing=spacing)
    return NnUNetModel(
        name=str(plans.get("dataset_name") or dataset.get("name") or "nnunet"),
        configuration=configuration,
        section=_section(settings, axes),
        axes=axes,
        channels=named,
        labels=labels,
        patch=triple([int(size) for size in _turned(patch, axes)]),
        preprocess=preprocess,
        notes=(*notes, *scan_notes),
    )


def turned_axes(plans: Mapping[str, Any]) -> Triple:
    """Return which of nnU-Net's axes becomes each of (i, j, k).

    Its axis ``m`` is axis ``transpose_forward[m]`` of (z, y, x), which is our axis ``2 - transpose_forward[m]``.

    >>> turned_axes({"transpose_forward": [0, 1, 2]})
    (2, 1, 0)
    >>> turned_axes({"transpose_forward": [2, 0, 1]})
    (0, 2, 1)

    Raises:
        ModelError: ``transpose_forward`` is no order of three axes.
    """
    forward = plans.get("transpose_forward", [0, 1, 2])
    if not isinstance(forward, list | tuple) or sorted(map(str, forward)) != ["0", "1", "2"]:
        raise ModelError(f"transpose_forward of the plans must be an order of the axes 0, 1, 2, got {forward}.")
    order = [int(axis) for axis in forward]
    return triple([order.index(2 - axis) for axis in range(3)])


def turn_kernel(tensor: Tensor, axes: Triple) -> Tensor:
    """Return a tensor of nnU-Net for a network that reads (i, j, k): kernels of 3D are turned, all else stays."""
    return tensor.permute(0, 1, *(2 + axis for axis in axes)).contiguous() if tensor.ndim == 5 else tensor


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with all that it inherits."""
    known = plans.get("configurations")
    if not isinstance(known, Mapping) or not known:
        raise ModelError("The plans have no configurations, so they are not those of nnU-Net v2.")
    chain: list[Mapping[str, Any]] = []
    seen: list[str] = []
    while name:
        if name not in known or name in seen or not isinstance(known[name], Mapping):
            raise ModelError(f"The plans have no configuration '{name}', they have {', '.join(map(str, known))}.")
        seen.append(name)
        chain.append(known[name])
        name = str(known[name].get("inherits_from") or "")
    return {key: value for settings in reversed(chain) for key, value in settings.items()}


def _numbers(settings: Mapping[str, Any], key: str, configuration: str) -> list[float]:
    values = settings.get(key)
    if not isinstance(values, list | tuple) or not all(isinstance(v, int | float) and v > 0 for v in values):
        raise ModelError(f"Configuration {configuration} must have a {key} of positive numbers, got {values}.")
    return list(values)


def _turned(values: Sequence[float], axes: Triple) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ModelError(f"The plans must have three numbers per size, one for each axis, got {list(values)}.")
    i, j, k = (values[axis] for axis in axes)
    return i, j, k


def _section(settings: Mapping[str, Any], axes: Triple) -> ModelSection:
    """Return the network, in axes (i, j, k)."""
    name, arguments = _architecture(settings)
    if name.rpartition(".")[2] not in NETWORKS or not name.startswith(_PACKAGE):
        raise ModelError(f"The plans name the network '{name}'; dmx reads {', '.join(NETWORKS)}.")
    if "3d" not in str(arguments.get("conv_op")):
        raise ModelError(f"The network's convolutions must be 3D, the plans have {arguments.get('conv_op')}.")
    kept = {key: value for key, value in arguments.items() if key not in _FOLLOWS}
    for key in _ALONG_AXES:
        kept[key] = _turned_steps(kept.get(key), axes, key)
    return ModelSection(name=name.rpartition(".")[2], arguments=kept)


def _turned_steps(values: object, axes: Triple, key: str) -> object:
    """Return sizes per stage in our axes; a single number holds for all of them."""
    if isinstance(values, int):
        return values
    if not isinstance(values, list | tuple):
        raise ModelError(f"The plans must have {key} of each stage, got {values}.")
    return [list(_turned(value, axes)) if isinstance(value, list | tuple) else value for value in values]


def _architecture(settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return name and arguments of a network, for plans from before they said so too (nnU-Net up to 2.3)."""
    known = settings.get("architecture")
    if isinstance(known, Mapping):
        name, arguments = known.get("network_class_name"), known.get("arch_kwargs")
        if not isinstance(arguments, Mapping):
            raise ModelError("The plans have no arch_kwargs for their network.")
        return str(name), arguments
    try:
        encoder = settings["n_conv_per_stage_encoder"]
        widest, first = int(settings["unet_max_num_features"]), int(settings["UNet_base_num_features"])
        blocks = "n_conv_per_stage" if settings["UNet_class_name"] == "PlainConvUNet" else "n_blocks_per_stage"
        return f"{_PACKAGE}unet.{settings['UNet_class_name']}", {
            "n_stages": len(encoder),
            "features_per_stage": [min(first * 2**stage, widest) for stage in range(len(encoder))],
            "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            blocks: encoder,
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The plans do not describe their network: {error!r} is missing or wrong.") from error
