"""What the target computes as the source does, and what keeps it from doing so."""

from collections.abc import Mapping, Sequence

from dmx.transfer.channels import ChannelMaps, runs_of
from dmx.transfer.describe import NetworkSketch, Setting
from dmx.transfer.match import LayerPair, Pairing
from dmx.transfer.values import EqualOutput, TensorPlan

_SHOWN_LAYERS = 3
# Settings of the network that decide where and how pathways are joined.
_AT_JOINS = ("upsampling", "shrinkage of the pathways")


def differences(pairs: Sequence[LayerPair], pairing: Pairing, target: NetworkSketch) -> list[str]:
    """Return a sentence for each setting in which layers that receive, or the networks, differ from the source's.

    Args:
        pairs: Layers that receive.
        pairing: All layers that correspond.
        target: The target.
    """
    found: dict[tuple[str, Setting, Setting], list[str]] = {}
    for pair in pairs:
        for key in _differing(pair):
            values = (key, pair.source.settings[key], pair.target.settings[key])
            found.setdefault(values, []).append(pair.target.name)
        if pair.source.settings and (pair.source.residual is None) != (pair.target.residual is None):
            states = ("yes", "no") if pair.target.residual is None else ("no", "yes")
            found.setdefault(("residual addition", *states), []).append(pair.target.name)
    sentences = [
        f"Not exact: {key} is {_text(theirs)} in the source and {_text(ours)} here ({_names(layers)})."
        for (key, theirs, ours), layers in found.items()
    ]
    elsewhere = [pair.target.name for pair in pairs if _reads_elsewhere(pair, pairing)]
    if elsewhere:
        sentences.append(f"Not exact: other layers are read here than in the source ({_names(elsewhere)}).")
    networks = {pair.network.name: pair.network for pair in pairs}
    for network in networks.values():
        for key in sorted(network.settings.keys() & target.settings.keys()):
            theirs, ours = network.settings[key], target.settings[key]
            if theirs != ours:
                sentences.append(f"Not exact: {key} is {_text(theirs)} in {network.name} and {_text(ours)} here.")
    return sentences


def _differing(pair: LayerPair) -> list[str]:
    """Return the settings in which two layers differ so that the output differs."""
    theirs, ours = pair.source.settings, pair.target.settings
    keys = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    if "statistics" in keys and not _same_ring(pair):
        keys.remove("statistics")
    return keys


def _reads_elsewhere(pair: LayerPair, pairing: Pairing) -> bool:
    """Return whether a layer reads the outputs of layers that do not correspond to those that it read."""
    ours, theirs = pair.target.reads or (), pair.source.reads or ()
    if len(ours) < len(theirs) or bool(ours) != bool(theirs):
        return True
    found = [pairing.counterparts.get(name) for name in ours[: len(theirs)]]
    return any(
        other is None or other.source.name != name or other.network is not pair.network
        for other, name in zip(found, theirs, strict=True)
    )


def _same_ring(pair: LayerPair) -> bool:
    """Return whether rows go to rows one by one, so that how they are averaged matters; otherwise a rule averages."""
    ours, theirs = pair.target.part("norm.means"), pair.source.part("norm.means")
    return ours is not None and theirs is not None and ours.shape[0] == theirs.shape[0]


def _text(value: Setting) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _names(layers: Sequence[str]) -> str:
    if len(layers) <= _SHOWN_LAYERS:
        return ", ".join(layers)
    return f"{', '.join(layers[:_SHOWN_LAYERS])} and {len(layers) - _SHOWN_LAYERS} more"


def equal_outputs(
    target: NetworkSketch, pairing: Pairing, maps: ChannelMaps, plans: Mapping[str, TensorPlan]
) -> tuple[EqualOutput, ...]:
    """Return the layers whose output must equal the source's in inference, given the same scan.

    Args:
        target: The target.
        pairing: Which layers correspond.
        maps: Which channels correspond.
        plans: What happens to each tensor, by name.
    """
    equal: dict[str, EqualOutput] = {}
    for layer in target.layers:
        pair = pairing.counterparts.get(layer.name)
        if pair is None or layer.name not in pairing.selected:
            continue
        received = (
            all(_kept(plans[tensor.name]) for tensor in layer.tensors)
            and not _differing(pair)
            and _inputs_kept(pair, plans)
            and not mixes_channels(pair, maps)
            and addition_kept(pair, maps)
        )
        if pair.source.settings and received and _reads_equal(pair, target, pairing, equal):
            equal[layer.name] = EqualOutput(layer.name, pair.network.name, pair.source.name, runs_of(maps.output(pair)))
    return tuple(equal.values())


def _kept(plan: TensorPlan) -> bool:
    """Return whether a tensor does in the target what it did in the source."""
    if plan.name.endswith(".num_batches_tracked"):
        return True
    return plan.action != "initialized" and plan.exact and not plan.axis_rules and not plan.rule.startswith("kernel")


def _inputs_kept(pair: LayerPair, plans: Mapping[str, TensorPlan]) -> bool:
    """Return whether old channels read all old channels and nothing else, in each factor of the kernel."""
    for tensor in (tensor for tensor in pair.target.tensors if tensor.kernel):
        plan = plans[tensor.name]
        runs = plan.parts[1]
        given = tensor.shape[1] if runs is None else sum(run.length for run in runs)
        if given < plan.source_shape[1] or (given < tensor.shape[1] and not plan.zeroed):
            return False
    return True


def mixes_channels(pair: LayerPair, maps: ChannelMaps) -> bool:
    """Return whether a normalization over several channels gets other channels than in the source."""
    if pair.target.settings.get("normalization") != "group":
        return False
    channels = maps.input(pair)
    same = all(source == target for source, target in channels.items())
    return not same or not len(channels) == pair.source.in_channels == pair.target.in_channels


def addition_kept(pair: LayerPair, maps: ChannelMaps) -> bool:
    """Return whether each received channel gets the residual addition that it got in the source."""
    if pair.target.residual is None or pair.source.residual is None:
        return pair.target.residual is pair.source.residual
    shortcut = maps.shortcut(pair)
    old_reach, new_reach = maps.added(pair)
    for source, target in maps.output(pair).items():
        gets = shortcut.get(source, -1) if source < old_reach else None
        if gets != (target if target < new_reach else None):
            return False
    return True


def _reads_equal(pair: LayerPair, target: NetworkSketch, pairing: Pairing, equal: Mapping[str, EqualOutput]) -> bool:
    """Return whether what the layer reads, and adds, is equal itself."""
    return _joined_equal(pair, target, pairing, equal, residual=False) and (
        pair.target.residual is None or _joined_equal(pair, target, pairing, equal, residual=True)
    )


def _joined_equal(
    pair: LayerPair, target: NetworkSketch, pairing: Pairing, equal: Mapping[str, EqualOutput], *, residual: bool
) -> bool:
    ours = pair.target.residual if residual else pair.target.reads
    theirs = pair.source.residual if residual else pair.source.reads
    if not ours or not theirs:
        keys = (f"factor.{pair.target.pathway}", f"factor.{pair.source.pathway}")
        same_grid = target.settings.get(keys[0]) == pair.network.settings.get(keys[1])
        coarse = pair.target.pathway != "normal" or pair.source.pathway != "normal"
        same_voxels = not coarse or _same_setting(pair, target, "subsampling")
        return ours == theirs and same_grid and same_voxels
    if len(ours) > 1 and not all(_same_setting(pair, target, key) for key in _AT_JOINS):
        return False
    return all(
        to in equal and equal[to].source == of and equal[to].network == pair.network.name
        for to, of in zip(ours, theirs, strict=False)
    )


def _same_setting(pair: LayerPair, target: NetworkSketch, key: str) -> bool:
    return pair.network.settings.get(key) == target.settings.get(key)
