"""Which channel of a source layer becomes which of its counterpart: by origin, along concatenations and sums."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dmx.transfer.describe import LayerSketch, NetworkSketch
from dmx.transfer.match import LayerPair
from dmx.transfer.options import TransferOptions
from dmx.transfer.values import Run

# From a channel of the source to a channel of the target.
ChannelMap = dict[int, int]


def runs_of(channels: Mapping[int, int]) -> tuple[Run, ...]:
    """Return consecutive channels as runs.

    >>> runs_of({0: 0, 1: 1, 2: 6})
    (Run(target=0, source=0, length=2), Run(target=6, source=2, length=1))
    """
    runs: list[Run] = []
    for source, target in sorted(channels.items()):
        last = runs[-1] if runs else None
        if last is not None and (last.target + last.length, last.source + last.length) == (target, source):
            runs[-1] = Run(last.target, last.source, last.length + 1)
        else:
            runs.append(Run(target, source, 1))
    return tuple(runs)


def prefix(source: int, target: int) -> ChannelMap:
    """Return the first channels that both have."""
    return {channel: channel for channel in range(min(source, target))}


def by_name(source: Sequence[str], target: Sequence[str]) -> ChannelMap:
    """Return the channels (or classes) that both sides name; case, blanks and punctuation make no difference.

    >>> by_name(["T1 w", "FLAIR"], ["flair", "t1w", "t2"])
    {0: 1, 1: 0}
    """
    exact = {index: target.index(name) for index, name in enumerate(source) if name in target}
    theirs = _alike({index: name for index, name in enumerate(source) if index not in exact})
    ours = _alike({index: name for index, name in enumerate(target) if index not in exact.values()})
    return dict(sorted({**exact, **{theirs[key]: ours[key] for key in theirs if key in ours}}.items()))


def _alike(names: Mapping[int, str]) -> dict[str, int]:
    """Return index by what is left of a name without case, blanks and punctuation, where no other name leaves that."""
    keys = {index: re.sub(r"[\W_]+", "", name.casefold()) for index, name in names.items()}
    return {key: index for index, key in keys.items() if key and list(keys.values()).count(key) == 1}


def by_name_or_place(source: Sequence[str], target: Sequence[str]) -> ChannelMap:
    """Return what both sides name, and of equally many the others in their order.

    >>> by_name_or_place(["t1", "flair"], ["FLAIR", "t2"])
    {0: 1, 1: 0}
    """
    named = by_name(source, target)
    if len(source) != len(target):
        return named
    left = iter(index for index in range(len(target)) if index not in named.values())
    return {index: named[index] if index in named else next(left) for index in range(len(source))}


def scan_channels(source: Sequence[str], target: Sequence[str]) -> ChannelMap:
    """Return which channels of the scan correspond: those that both name; in order if there is none and as many."""
    named = by_name(source, target)
    return named if named or len(source) != len(target) else prefix(len(source), len(target))


@dataclass
class ChannelMaps:
    """The map of each layer's output, computed when it is asked for.

    Attributes:
        target: The target.
        pairs: Corresponding layers by target layer.
        options: What was asked for.
        problems: Why zero-cross widening cannot be exact, by target layer.
    """

    target: NetworkSketch
    pairs: Mapping[str, LayerPair]
    options: TransferOptions
    problems: dict[str, list[str]] = field(default_factory=dict)
    _outputs: dict[str, ChannelMap] = field(default_factory=dict)

    def output(self, pair: LayerPair) -> ChannelMap:
        """Return the map of the channels that a layer gives."""
        name = pair.target.name
        if name not in self._outputs:
            self._outputs[name] = self._output(pair)
        return self._outputs[name]

    def input(self, pair: LayerPair) -> ChannelMap:
        """Return the map of the channels that a layer gets: the scan's, or those of the blocks that it reads."""
        return self._joined(pair, pair.target.reads, pair.source.reads)

    def shortcut(self, pair: LayerPair) -> ChannelMap:
        """Return the map of the channels that are added to a layer's output."""
        return self._joined(pair, pair.target.residual, pair.source.residual)

    def scan(self, network: NetworkSketch) -> ChannelMap:
        """Return the map of the input channels, by name where both sides name them."""
        if (
            self.options.channels == "pair"
            and self.options.match_channels == "name"
            and network.channels
            and self.target.channels
        ):
            return scan_channels(network.channels, self.target.channels)
        return prefix(network.num_channels, self.target.num_channels)

    def added(self, pair: LayerPair) -> tuple[int, int]:
        """Return how many channels the residual addition reaches in the source and in the target."""
        theirs = _width(pair.network, pair.source.residual)
        ours = _width(self.target, pair.target.residual)
        return min(theirs, pair.source.out_channels), min(ours, pair.target.out_channels)

    def _joined(self, pair: LayerPair, ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> ChannelMap:
        """Return the map of concatenated blocks, the k-th block to the k-th, each with its own offset."""
        if ours == () and theirs == ():
            return self.scan(pair.network)
        if not ours or not theirs:
            return prefix(_width(pair.network, theirs), _width(self.target, ours))
        channels: ChannelMap = {}
        from_offset = to_offset = 0
        for to_name, from_name in zip(ours, theirs, strict=False):
            to_layer, from_layer = _layer(self.target, to_name), _layer(pair.network, from_name)
            for source, target in self._block(to_layer, from_layer).items():
                channels[from_offset + source] = to_offset + target
            from_offset += from_layer.out_channels
            to_offset += to_layer.out_channels
        return channels

    def _block(self, ours: LayerSketch, theirs: LayerSketch) -> ChannelMap:
        """Return the map of one block: that of the layer that gives it where the same layers correspond."""
        pair = self.pairs.get(ours.name)
        if pair is not None and pair.source is theirs:
            return self.output(pair)
        return prefix(theirs.out_channels, ours.out_channels)

    def _output(self, pair: LayerPair) -> ChannelMap:
        theirs, ours = pair.source, pair.target
        if ours.is_head:
            return self._classes(pair)
        same = prefix(theirs.out_channels, ours.out_channels)
        if self.options.extra != "zero-cross":
            return same
        if ours.out_channels < theirs.out_channels:
            return self._problem(pair, f"it has {ours.out_channels} channels, fewer than {theirs.out_channels}", same)
        if (ours.residual is None) != (theirs.residual is None):
            return self._problem(pair, "only one side adds the input of the layer before", same)
        return same if ours.residual is None else self._along_sum(pair, same)

    def _classes(self, pair: LayerPair) -> ChannelMap:
        theirs, ours = pair.network.classes, self.target.classes
        named = by_name(theirs, ours)
        reordered = len(theirs) == len(ours) == len(named)
        if theirs and ours and (self.options.classes_from == "names" or reordered):
            return named
        return prefix(pair.source.out_channels, pair.target.out_channels)

    def _along_sum(self, pair: LayerPair, fallback: ChannelMap) -> ChannelMap:
        """Return a map under which each old channel gets exactly the addition that it got.

        What the addition reaches sits where the shortcut's channel sits; all others sit beyond its reach, where
        nothing is added to them.
        """
        shortcut = self.shortcut(pair)
        old_reach, new_reach = self.added(pair)
        channels = {source: target for source, target in shortcut.items() if source < old_reach}
        beyond = range(new_reach, pair.target.out_channels)
        left = pair.source.out_channels - old_reach
        if len(channels) < old_reach or any(target >= new_reach for target in channels.values()):
            return self._problem(pair, "channels that are added to the source's do not reach it here", fallback)
        if left > len(beyond):
            why = f"{left} of its channels receive no addition, but only {len(beyond)} channels lie beyond the addition"
            return self._problem(pair, why, fallback)
        return channels | dict(zip(range(old_reach, pair.source.out_channels), beyond, strict=False))

    def _problem(self, pair: LayerPair, why: str, fallback: ChannelMap) -> ChannelMap:
        self.problems.setdefault(pair.target.name, []).append(why)
        return fallback


def _layer(network: NetworkSketch, name: str) -> LayerSketch:
    layer = network.layer(name)
    assert layer is not None
    return layer


def _width(network: NetworkSketch, names: Sequence[str] | None) -> int:
    """Return the channels of concatenated outputs, those of the scan without names."""
    return sum(_layer(network, name).out_channels for name in names) if names else network.num_channels
