"""Any module of torch as a network: one patch in, class scores for all of it out."""

import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from dmx.errors import ModelError, suggest
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple
from dmx.model.groups import LayerGroup, kernel_weights, module_groups, named_kernels
from dmx.model.meta import meta_call, meta_state, mode
from dmx.model.network import Network
from dmx.model.spec import size_text
from dmx.transfer.layout import score_layers

_LONGEST_REASON = 120


class ModuleNetwork(Network):
    """A network that reads one patch, the segment, and gives scores for all of it.

    Where a module gives several outputs (deep supervision), the first one is used, and only that one enters the loss.

    Args:
        network: A module that maps [N, C, I, J, K] to [N, classes, I, J, K]; its names in the state dict begin with
            ``network.``.
        name: What messages call it.
        num_channels: Channels of its input.
        num_classes: Channels of its output.
        head: Name of the module that gives the class scores, or None for the last kernel.
        by_class: The module's tensors whose size follows the number of classes, each with the axes that do: their
            layers are the head, too. Empty where it is not known; then convolutions like the last kernel are.

    Raises:
        ModelError: It has no kernels, layers whose size is not known yet, or no module of the head's name.
    """

    how_to_install: ClassVar[str] = "Install it."

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        num_channels: int,
        num_classes: int,
        head: str | None = None,
        by_class: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        if any(is_lazy(value) for value in (*network.parameters(), *network.buffers())):
            raise ModelError(
                f"Network {name} has lazy layers, whose sizes are not known before they have seen a segment. Call it "
                "once on a segment, or give its layers their sizes."
            )
        self.network = network
        self.name = name
        self.num_channels = num_channels
        self.num_classes = num_classes
        self.heads = find_heads(network, name, head, by_class or {})
        self.class_axes = {f"network.{tensor}": axes for tensor, axes in (by_class or {}).items()}
        self._refusals: dict[Triple, str | None] = {}

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return class scores [N, classes, I, J, K] of the one patch [N, C, I, J, K]."""
        if len(patches) != 1:
            raise ModelError(f"Network {self.name} reads 1 patch of a segment, got {len(patches)}.")
        return self.final_output(self.network(patches[0]))

    def final_output(self, output: object) -> Tensor:
        """Return the output at full resolution from whatever the module gives.

        Raises:
            ModelError: It gives no tensor.
        """
        if isinstance(output, list | tuple) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise ModelError(
                f"Network {self.name} gives {type(output).__name__} where class scores are needed. Use another one."
            )
        return output

    def segment_plan(self, segment: Triple) -> SegmentPlan:
        """Return the plan of a segment, all of which is input and output.

        Raises:
            ModelError: The network cannot take this size; the nearest size that it can take is named.
        """
        segment = triple(segment)
        refusal = self._refusal(segment)
        if refusal is not None:
            near = self._nearest(segment)
            advice = f"The nearest size that it takes is {size_text(near)}." if near else "No size nearby fits."
            raise ModelError(
                f"Network {self.name} cannot take a segment of {size_text(segment)} voxels ({refusal}). {advice}"
            )
        patch = PatchPlan("normal", segment, (1, 1, 1), (0, 0, 0))
        return SegmentPlan(segment, segment, (0, 0, 0), (0, 0, 0), (patch,))

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return one group for each module that owns parameters, in the order in which they were registered."""
        return module_groups(self, heads=[f"network.{head}".rstrip(".") for head in self.heads])

    @property
    def head_name(self) -> str:
        """Name of the module that gives the final scores."""
        return self.heads[0]

    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers."""
        return kernel_weights(self)

    def _refusal(self, segment: Triple) -> str | None:
        """Return why the network cannot take a segment, or None; tried once per size, without computing."""
        if segment not in self._refusals:
            self._refusals[segment] = self._try(segment)
        return self._refusals[segment]

    def _try(self, segment: Triple) -> str | None:
        # Two segments and training mode: that is when normalization refuses a single voxel.
        patch = torch.empty(2, self.num_channels, *segment, device="meta")
        try:
            with mode(self.network, training=True), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                output = self.final_output(meta_call(self.network, meta_state(self.network), patch))
        except ImportError as error:
            raise missing_package(self.name, error, advice=self.how_to_install) from error
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            return first_sentence(error)
        wanted = (2, self.num_classes, *segment)
        shape = tuple(output.shape)
        return None if shape == wanted else f"its output has the shape {shape} where {wanted} is needed"

    def _nearest(self, segment: Triple) -> Triple | None:
        """Return the nearest size that works, among multiples of powers of two."""
        candidates = {
            triple([max(step, (size + up * (step - 1)) // step * step) for size in segment])
            for step in (2, 4, 8, 16, 32, 64, 96)
            for up in (0, 1)
        }
        ordered = sorted(candidates, key=lambda other: sum(abs(a - b) for a, b in zip(other, segment, strict=True)))
        return next((other for other in ordered if self._refusal(other) is None), None)


def infer_channels(module: nn.Module) -> int:
    """Return how many channels the first kernel of a module reads.

    Raises:
        ModelError: The module has no kernels.
    """
    _, first = _require_kernels(module, type(module).__name__)[0]
    return int(first.in_channels if isinstance(first, _ConvNd) else first.in_features)


def infer_classes(module: nn.Module) -> int:
    """Return how many channels the last kernel of a module gives.

    Raises:
        ModelError: The module has no kernels.
    """
    _, last = _require_kernels(module, type(module).__name__)[-1]
    return int(last.out_channels if isinstance(last, _ConvNd) else last.out_features)


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an exception, shortened to fit into another one."""
    sentence = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return sentence if len(sentence) <= _LONGEST_REASON else f"{sentence[: _LONGEST_REASON - 1]}…"


def missing_package(name: str, error: Exception, *, advice: str) -> ModelError:
    """Return the error for a network whose code needs a package that is not there."""
    return ModelError(f"Network {name} needs a package that is not installed ({error}). {advice}")


def _require_kernels(module: nn.Module, name: str) -> list[tuple[str, _ConvNd | nn.Linear]]:
    kernels = named_kernels(module)
    if not kernels:
        raise ModelError(f"Network {name} has no convolution and no linear layer, so there is nothing to train.")
    return kernels


def find_heads(
    network: nn.Module, name: str, head: str | None, by_class: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Return the names of the modules whose size follows the number of classes, first the one with the final scores.

    Args:
        network: The network.
        name: What messages call it.
        head: Name of the module with the final scores; None: the last kernel of those that are sized by classes.
        by_class: Tensors whose size follows the number of classes; empty: not known.

    Raises:
        ModelError: It has no kernels, or no module of the head's name.
    """
    kernels = [key for key, _ in _require_kernels(network, name)]
    first = dict(network.named_modules())
    sized = list(dict.fromkeys(owner for tensor in by_class if (owner := tensor.rpartition(".")[0]) in first))
    last = next((key for key in reversed(kernels) if key in sized), kernels[-1])
    main = last if head is None else _named_head(network, name, head, last)
    if not sized:
        sized = list(score_layers({key: tuple(value.shape) for key, value in network.named_parameters()}, main))
    return tuple(dict.fromkeys([main, *(key for key in sized if not f"{key}.".startswith(f"{main}."))]))


def _named_head(network: nn.Module, name: str, head: str, last: str) -> str:
    modules = [key for key, module in network.named_modules() if key and any(True for _ in module.parameters())]
    head = head.removeprefix("network.")
    if head not in modules:
        raise ModelError(
            f"model.head must name a module of {name} that owns weights, got '{head}'.{suggest(head, modules)} "
            f"Leave it empty for the last kernel, '{last}'."
        )
    return head
