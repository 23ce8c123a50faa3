"""Build a network from its section."""

from dmx.config.model import ModelSection
from dmx.errors import ModelError
from dmx.model.multiscale import MultiScaleNet
from dmx.model.network import Network
from dmx.model.norms import Compatibility
from dmx.model.spec import NetworkSpec, resolve, size_text
from dmx.model.weights import draw_kernels


def _require_deepmedic(section: ModelSection, spec: NetworkSpec) -> None:
    """Refuse in compatibility mode what DeepMedic does not have."""
    choices = (
        ("normalization.name", section.normalization.name, ("batch_rolling", "none")),
        ("activation", section.activation, ("prelu", "relu", "elu", "linear")),
        ("upsampling", section.upsampling, ("nearest",)),
    )
    for field, got, allowed in choices:
        if got not in allowed:
            raise ModelError(
                f"model.{field} must be {' or '.join(allowed)} with compatibility 'deepmedic', got '{got}'."
            )
    wanted = spec.normal.receptive_field
    for pathway in spec.subsampled:
        if pathway.receptive_field != wanted:
            raise ModelError(
                f"{pathway.name}.kernels must give the receptive field of the normal pathway, {size_text(wanted)}, "
                f"with compatibility 'deepmedic', got {size_text(pathway.receptive_field)}."
            )


def build_network(
    section: ModelSection,
    *,
    num_channels: int,
    num_classes: int,
    compatibility: Compatibility = "none",
    seed: int = 0,
) -> Network:
    """Return a network with fresh weights, a pure function of the arguments.

    Args:
        section: The network's settings.
        num_channels: Channels of the scans.
        num_classes: Classes, background included.
        compatibility: ``deepmedic`` computes exactly what DeepMedic v0.8.4 does.
        seed: Seed of the weights.

    Raises:
        ModelError: The settings do not describe a network; the sentence names field, allowed and got.
        CheckpointError: They name a function that the user has not named.
    """
    if section.name != "multiscale":
        if compatibility != "none":
            raise ModelError(
                f"compatibility '{compatibility}' needs model.name 'multiscale', got '{section.name}'. "
                "With compatibility 'none' other networks train."
            )
        if ":" in section.name:
            from dmx.model.factory import build_factory

            return build_factory(section, num_channels=num_channels, num_classes=num_classes, seed=seed)
        from dmx.model.nnunet import NETWORKS, build_nnunet
        from dmx.model.registry import build_monai

        if section.name in NETWORKS:
            return build_nnunet(section, num_channels=num_channels, num_classes=num_classes, seed=seed)
        return build_monai(section, num_channels=num_channels, num_classes=num_classes, seed=seed)
    spec = resolve(section, num_channels=num_channels, num_classes=num_classes)
    if compatibility == "deepmedic":
        _require_deepmedic(section, spec)
    network = MultiScaleNet(spec, section, compatibility=compatibility)
    draw_kernels(network, section.weight_init, seed=seed)
    return network
