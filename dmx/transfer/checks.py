"""What makes a transfer impossible, said in one sentence each."""

from collections.abc import Mapping, Sequence

from dmx.errors import TransferError
from dmx.transfer.channels import ChannelMaps
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.exactness import mixes_channels
from dmx.transfer.match import LayerPair
from dmx.transfer.options import TransferOptions
from dmx.transfer.prefixes import NamedTensor


def check_sources(sources: Sequence[NetworkSketch], options: TransferOptions) -> None:
    """Check that there is a source, that several have different names, and that the options say what to do with them.

    Raises:
        TransferError: One of these does not hold.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        got = f"twice '{max(names, key=names.count)}'" if names else "none"
        raise TransferError(f"A transfer needs one source, or several of different names, got {got}.")
    if options.extra == "zero-cross" and options.channels != "pair":
        raise TransferError(
            f"--extra zero-cross keeps what the source computes, and --channels {options.channels} changes what it "
            "reads. Leave one of them out."
        )
    if len(names) > 1 and options.layers:
        raise TransferError(
            f"--layers counts the depths of one source, got {len(names)} sources: {', '.join(names)}. "
            "Name what comes from which of them in a map."
        )


def check_head_received(received: bool, options: TransferOptions) -> None:
    """Check that a head that is to be copied, or whose rows are to be paired, receives something.

    Raises:
        TransferError: It receives nothing.
    """
    if received:
        return
    if options.head == "copy":
        raise TransferError("The head is to be copied, but no rule says from which of the sources. Add one to the map.")
    if options.classes_from == "names":
        raise TransferError(
            "--classes-from names pairs the rows of a copied head, but the head stays as initialized. Add --head copy."
        )


def check_head(
    counts: tuple[int, int], network: NetworkSketch, *, target: NetworkSketch, options: TransferOptions
) -> None:
    """Check that the rows of a head correspond.

    Args:
        counts: Rows in the source and in the target.
        network: The source.
        target: The target.
        options: What was asked for.

    Raises:
        TransferError: The class counts differ, or names are asked for and not known, or none is in common.
    """
    if options.classes_from == "names":
        if not network.classes or not target.classes:
            unnamed = network.name if not network.classes else target.name
            raise TransferError(
                f"--classes-from names needs the names of the classes on both sides, but {unnamed} has none. "
                "Leave it out to copy the head row by row."
            )
        if not set(network.classes) & set(target.classes):
            raise TransferError(
                f"--classes-from names finds no class that both sides know: {', '.join(network.classes)} in "
                f"{network.name}, {', '.join(target.classes)} in {target.name}. Leave the head as initialized."
            )
    elif counts[0] != counts[1]:
        raise TransferError(
            f"The head of {network.name} gives {counts[0]} classes, that of {target.name} {counts[1]}. Use "
            "--classes-from names to copy the classes that both sides know, or leave the head as initialized."
        )


def kernel_error(mismatches: Sequence[str]) -> TransferError:
    """Return one error that lists every layer whose kernel differs."""
    return TransferError(
        f"Kernels must have the same size in both networks: {'; '.join(mismatches)}. Use --adapt-kernels to collapse, "
        "grow or inflate them, or leave these layers out with --exclude."
    )


def require_exact(pairs: Sequence[LayerPair], maps: ChannelMaps) -> None:
    """Check that each layer can receive so that old channels compute what they computed.

    Raises:
        TransferError: Lists every layer where that cannot be.
    """
    found: list[str] = []
    for pair in pairs:
        if not pair.source.settings:
            raise TransferError(
                f"--extra zero-cross needs to know how the layers of {pair.network.name} are joined, and a file of "
                "weights does not say. Transfer from a run, or use --extra random."
            )
        maps.output(pair)
        lost = pair.source.in_channels - len(maps.input(pair))
        reasons = list(maps.problems.get(pair.target.name, ()))
        if lost:
            reasons.append(f"{lost} of the {pair.source.in_channels} channels that it read are missing here")
        if mixes_channels(pair, maps):
            reasons.append("its group normalization mixes old and new channels")
        found += [f"{pair.target.name}: {reason}" for reason in reasons]
    if found:
        raise TransferError(
            f"--extra zero-cross cannot keep what the source computes: {'; '.join(found)}. "
            "Change the target's widths or normalization, or use --extra random."
        )


def require_known_joins(pairs: Mapping[str, NamedTensor], target: NetworkSketch) -> None:
    """Check that networks paired by name need no widening, as nobody knows how their layers are joined.

    Raises:
        TransferError: Lists every layer whose size differs.
    """
    other = [
        layer.name
        for layer in target.layers
        if any(tensor.name in pairs and pairs[tensor.name].tensor.shape != tensor.shape for tensor in layer.tensors)
    ]
    if other:
        raise TransferError(
            f"--extra zero-cross widens multi-scale networks only: how the layers of {target.name} are joined is not "
            f"known, and these differ in size: {', '.join(other)}. Use --extra random."
        )
