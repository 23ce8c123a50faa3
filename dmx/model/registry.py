"""Other networks by name: MONAI's, trained by the same core. The only module that imports monai."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dmx.config.model import ModelSection
from dmx.errors import ModelError, suggest
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple
from dmx.model.groups import LayerGroup
from dmx.model.meta import meta_call, meta_state, mode
from dmx.model.network import Network
from dmx.model.spec import size_text
from dmx.seeding import derive

# The name under which a class takes the number of classes, and the values that are filled in for the user.
_OUT_NAMES = ("out_channels", "num_classes")
_FILLED = ("spatial_dims", "in_channels", *_OUT_NAMES)

# These give their scales from coarse to fine; all others begin with the final one.
_FINAL_LAST = ("BasicUNetPlusPlus",)

_LONGEST_REASON = 120

# Networks that register other outputs (deep supervision, reconstruction) after the head.
_HEADS = {"DynUNet": "output_block", "MedNeXt": "out_0", "SegResNetVAE": "conv_final.2"}


class MonaiNetwork(Network):
    """A network that reads one patch, the segment, and gives scores for all of it.

    Where a network gives several outputs (deep supervision), the final one, at full resolution, is used, and only that
    one enters the loss.

    Args:
        network: The network itself; its names in the state dict begin with ``network.``.
        name: Name of its class.
        num_channels: Channels of its input.
        num_classes: Channels of its output.
        head: Name of the module that gives the class scores, or None for the last kernel.
    """

    def __init__(self, network: nn.Module, name: str, *, num_channels: int, num_classes: int, head: str | None) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.num_channels = num_channels
        self.num_classes = num_classes
        self.head_name = _find_head(network, name, head)
        self._refusals: dict[Triple, str | None] = {}

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return class scores [N, classes, I, J, K] of the one patch [N, C, I, J, K]."""
        if len(patches) != 1:
            raise ModelError(f"Network {self.name} reads 1 patch of a segment, got {len(patches)}.")
        return _final(self.network(patches[0]), self.name)

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
        groups: list[LayerGroup] = []
        seen: set[int] = set()
        for name, module in self.named_modules():
            direct = module.named_parameters(prefix=name, recurse=False)
            own = {key: parameter for key, parameter in direct if id(parameter) not in seen}
            seen.update(id(parameter) for parameter in own.values())
            if not own:
                continue
            position = len(groups) + 1
            is_head = f"{name}.".startswith(f"network.{self.head_name}.")
            groups.append(LayerGroup("network", position, position, name, (module,), is_head, own))
        return tuple(groups)

    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers."""
        layers = (module for module in self.modules() if isinstance(module, _ConvNd | nn.Linear))
        weights = (cast(nn.Parameter, layer.weight) for layer in layers)
        return list({id(weight): weight for weight in weights}.values())

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
                output = _final(meta_call(self.network, meta_state(self.network), patch), self.name)
        except ImportError as error:
            raise _missing_package(self.name, error) from error
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            return _first_sentence(error)
        wanted = (2, self.num_classes, *segment)
        return None if output.shape == wanted else f"its output has the shape {tuple(output.shape)}"

    def _nearest(self, segment: Triple) -> Triple | None:
        """Return the nearest size that works, among multiples of powers of two."""
        candidates = {
            triple([max(step, (size + up * (step - 1)) // step * step) for size in segment])
            for step in (2, 4, 8, 16, 32, 64, 96)
            for up in (0, 1)
        }
        ordered = sorted(candidates, key=lambda other: sum(abs(a - b) for a, b in zip(other, segment, strict=True)))
        return next((other for other in ordered if self._refusal(other) is None), None)


def _first_sentence(error: Exception) -> str:
    sentence = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return sentence if len(sentence) <= _LONGEST_REASON else f"{sentence[: _LONGEST_REASON - 1]}…"


def _final(output: object, name: str) -> Tensor:
    """Return the output at full resolution from whatever a network gives."""
    if isinstance(output, list | tuple):
        output = output[-1 if name in _FINAL_LAST else 0]
    if not isinstance(output, Tensor):
        raise ModelError(
            f"Network {name} gives {type(output).__name__} where class scores are needed. Use another one."
        )
    # Deep supervision of DynUNet stacks its outputs: [N, outputs, classes, I, J, K], the final one first.
    return output[:, 0] if output.ndim == 6 else output


def _find_head(network: nn.Module, name: str, head: str | None) -> str:
    """Return the name of the module that gives the class scores."""
    modules = [key for key, module in network.named_modules() if key and any(True for _ in module.parameters())]
    kernels = [key for key in modules if isinstance(network.get_submodule(key), _ConvNd | nn.Linear)]
    if head is None:
        return str(_HEADS.get(name, kernels[-1]))
    head = head.removeprefix("network.")
    if head not in modules:
        raise ModelError(
            f"model.head must name a module of {name} that owns weights, got '{head}'.{suggest(head, modules)} "
            f"Leave it empty for the last kernel, '{kernels[-1]}'."
        )
    return head


def _missing_package(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"Network {name} needs a package that is not installed ({error}). Run: pip install 'dmx[networks]'."
    )


def _out_name(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    return next((name for name in _OUT_NAMES if name in parameters), None)


def _find_class(name: str) -> type[nn.Module]:
    """Return a class of MONAI that takes channels and classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks import nets
    known: dict[str, type[nn.Module]] = {}
    for key, value in vars(nets).items():
        if inspect.isclass(value) and issubclass(value, nn.Module):
            parameters = inspect.signature(value).parameters
            if "in_channels" in parameters and _out_name(parameters):
                known[key] = value
    if name not in known:
        classes = {value.__name__ for value in known.values()} | {"multiscale"}
        raise ModelError(
            f"model.name must be 'multiscale' or a network in monai.networks.nets that takes in_channels and "
            f"out_channels, got '{name}'.{suggest(name, classes)}"
        )
    return known[name]


def _arguments(
    network_class: type[nn.Module], given: Mapping[str, Any], *, num_channels: int, num_classes: int
) -> dict[str, Any]:
    """Return the arguments of a class: the given ones, checked, and those that are filled in."""
    name = network_class.__name__
    parameters = inspect.signature(network_class).parameters
    anything = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in parameters.values())
    out_name = _out_name(parameters) or _OUT_NAMES[0]
    filled = {"in_channels": num_channels, out_name: num_classes}
    if "spatial_dims" in parameters:
        filled["spatial_dims"] = 3
    for key in given:
        if key in _FILLED:
            raise ModelError(f"model.arguments must not hold '{key}', which follows from the cohort. Leave it out.")
        if key not in parameters and not anything:
            allowed = [other for other in parameters if other not in _FILLED]
            raise ModelError(
                f"model.arguments holds '{key}', which {name} does not take.{suggest(key, allowed)} "
                f"It takes: {', '.join(allowed)}."
            )
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [
        key
        for key, value in parameters.items()
        if value.kind in named and value.default is inspect.Parameter.empty and key not in {**filled, **given}
    ]
    if missing:
        raise ModelError(f"model.arguments lacks {', '.join(missing)}, which {name} needs.")
    return {**given, **filled}


def build_monai(section: ModelSection, *, num_channels: int, num_classes: int, seed: int) -> MonaiNetwork:
    """Return a network of MONAI; its weights depend on the seed alone, and the global random state stays as it is.

    Raises:
        ModelError: No such network, arguments that it does not take, or a package that it needs is missing.
    """
    network_class = _find_class(section.name)
    arguments = _arguments(network_class, section.arguments, num_channels=num_channels, num_classes=num_classes)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only the generator of the CPU: torch.manual_seed would also reset those of the GPUs.
            torch.default_generator.manual_seed(derive(seed, "weights", "monai"))
            network = network_class(**arguments)
    except ImportError as error:
        raise _missing_package(section.name, error) from error
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"Network {section.name} cannot be built from model.arguments: {_first_sentence(error)}."
        ) from error
    name = network_class.__name__
    return MonaiNetwork(network, name, num_channels=num_channels, num_classes=num_classes, head=section.head)
