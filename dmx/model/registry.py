"""Other networks by name: MONAI's, trained by the same core. The only module that imports monai."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmx.config.model import ModelSection
from dmx.errors import ModelError, suggest
from dmx.model.module import ModuleNetwork, first_sentence, missing_package
from dmx.seeding import derive

# The name under which a class takes the number of classes, and the values that are filled in for the user.
_OUT_NAMES = ("out_channels", "num_classes")
_FILLED = ("spatial_dims", "in_channels", *_OUT_NAMES)

# These give their scales from coarse to fine; all others begin with the final one.
_FINAL_LAST = ("BasicUNetPlusPlus",)

# Networks that register other outputs (deep supervision, reconstruction) after the head.
_HEADS = {"DynUNet": "output_block", "MedNeXt": "out_0", "SegResNetVAE": "conv_final.2"}


class MonaiNetwork(ModuleNetwork):
    """A network of MONAI, whose final output is at full resolution whatever else it gives."""

    how_to_install = "Run: pip install 'dmx[networks]'."

    def final_output(self, output: object) -> Tensor:
        """Return the output at full resolution."""
        if isinstance(output, list | tuple) and self.name in _FINAL_LAST:
            output = output[-1]
        output = super().final_output(output)
        # Deep supervision of DynUNet stacks its outputs: [N, outputs, classes, I, J, K], the final one first.
        return output[:, 0] if output.ndim == 6 else output


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
        raise missing_package(section.name, error, advice=MonaiNetwork.how_to_install) from error
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"Network {section.name} cannot be built from model.arguments: {first_sentence(error)}."
        ) from error
    name = network_class.__name__
    head = section.head or _HEADS.get(name)
    return MonaiNetwork(network, name, num_channels=num_channels, num_classes=num_classes, head=head)
