"""Build the network of an experiment or a checkpoint, whatever its task."""

from dmx.config.model import ModelSection
from dmx.model.build import build_network
from dmx.model.classifier import build_classifier
from dmx.model.network import TrainableNetwork
from dmx.model.norms import Compatibility


def build_by_task(  # noqa: PLR0913  # what decides a network
    section: ModelSection,
    *,
    task: str,
    num_channels: int,
    num_outputs: int,
    compatibility: Compatibility = "none",
    seed: int = 0,
    spatial_dims: int = 3,
) -> TrainableNetwork:
    """Return a network of voxels for ``segmentation``, of whole images or volumes for any other task.

    Args:
        section: The network's settings.
        task: ``segmentation``, ``classification`` or ``regression``.
        num_channels: Channels of the input.
        num_outputs: Classes, or targets of a regression.
        compatibility: ``deepmedic`` for a segmentation as DeepMedic computes it.
        seed: Seed of the weights.
        spatial_dims: 2 for a network that scores images, 3 for volumes.

    Raises:
        ModelError: The settings do not describe such a network.
        CheckpointError: They name a function that the user has not named.
    """
    if task == "segmentation":
        return build_network(
            section, num_channels=num_channels, num_classes=num_outputs, compatibility=compatibility, seed=seed
        )
    return build_classifier(
        section, num_channels=num_channels, num_outputs=num_outputs, seed=seed, spatial_dims=spatial_dims
    )
