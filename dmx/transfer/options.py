"""What a transfer may be asked to do."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MapRule:
    """Say where something of the source goes.

    Attributes:
        source: Name of a layer or tensor of the source, ``*`` for any text.
        target: Name in the target; its stars stand for what the source's stars stood for, in order.
        network: Name of the source network, needed where there are several.
    """

    source: str
    target: str
    network: str = ""


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """What to transfer, and how.

    Attributes:
        layers: Depths of the source, from 1, or in networks without pathways also names of its layers, with stars;
            empty: every layer except the head.
        head: Whether the classification layer is copied; it is, too, when ``layers`` names its depth.
        classes_from: How the rows of a copied head correspond; ``names`` copies the classes that both sides know.
        extra: What a wider target has in its extra channels: ``random`` leaves them as initialized, ``zero-cross``
            also sets the weights from new to old channels to zero, which keeps what the source computes.
        match_channels: How input channels correspond; ``name`` where both sides name them.
        channels: What the layers that read the scan receive where its channels differ: ``pair`` gives each channel the
            kernels of its counterpart; ``repeat`` takes the source's channels again and again, ``mean`` their mean for
            each, both scaled so that the sum over the channels stays.
        exclude: Depths or names of layers that stay as initialized, with stars.
        adapt_kernels: Whether kernels of another size are collapsed, grown or inflated; otherwise they are an error.
        map: Explicit rules; what no rule reaches is paired as usual when there is one source, and not otherwise.
    """

    layers: tuple[int | str, ...] = ()
    head: Literal["initialized", "copy"] = "initialized"
    classes_from: Literal["position", "names"] = "position"
    extra: Literal["random", "zero-cross"] = "random"
    match_channels: Literal["name", "position"] = "name"
    channels: Literal["pair", "repeat", "mean"] = "pair"
    exclude: tuple[int | str, ...] = ()
    adapt_kernels: bool = False
    map: tuple[MapRule, ...] = ()
