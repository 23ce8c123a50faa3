"""What the section ``transfer`` of an experiment asks for, apart from the sources."""

from dmx.config.transfer import TransferSection
from dmx.transfer.options import MapRule, TransferOptions


def transfer_options(section: TransferSection) -> TransferOptions:
    """Return the options of a transfer."""
    return TransferOptions(
        layers=section.layers,
        head=section.head,
        classes_from=section.classes_from,
        extra=section.extra,
        match_channels=section.match_channels,
        channels=section.channels,
        exclude=section.exclude,
        adapt_kernels=section.adapt_kernels,
        map=tuple(MapRule(rule.source, rule.target, rule.network) for rule in section.map),
    )
