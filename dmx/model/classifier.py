"""Build what scores whole images or volumes from its section."""

from dmx.config.model import ENCODER_CLASSIFIER, ModelSection
from dmx.model.image_network import build_image_network
from dmx.model.network import TrainableNetwork
from dmx.model.volume_classifier import build_volume_classifier


def build_classifier(
    section: ModelSection, *, num_channels: int, num_outputs: int, seed: int = 0, spatial_dims: int = 2
) -> TrainableNetwork:
    """Return a network that gives one row of scores per image or volume; its weights depend on the seed alone.

    Args:
        section: The network's settings.
        num_channels: Channels of the images or volumes.
        num_outputs: Classes, or targets of a regression.
        seed: Seed of the weights.
        spatial_dims: 3 where a network of one's own scores volumes, 2 for images.

    Raises:
        ModelError: The settings do not describe such a network.
        CheckpointError: They name a function that the user has not named.
    """
    if section.name == ENCODER_CLASSIFIER:
        return build_volume_classifier(section, num_channels=num_channels, num_outputs=num_outputs, seed=seed)
    return build_image_network(
        section, num_channels=num_channels, num_outputs=num_outputs, seed=seed, spatial_dims=spatial_dims
    )
