"""Other networks by name: MONAI's, trained by the same core."""

import inspect
import warnings

from torch import Tensor, nn

from dmx.config.model import ModelSection
from dmx.errors import ModelError, suggest
from dmx.model.factory import call_arguments, out_name
from dmx.model.meta import sized_by
from dmx.model.module import ModuleNetwork, first_sentence, missing_package
from dmx.model.nnunet import NETWORKS
from dmx.model.weights import drawn_from

# These give their scales from coarse to fine; all others begin with the final one.
_FINAL_LAST = ("BasicUNetPlusPlus",)

# Networks that register other outputs of classes (deep supervision) after the final one.
_FINAL = {"DynUNet": "output_block", "MedNeXt": "out_0"}


class MonaiNetwork(ModuleNetwork):
    """A network of MONAI, whose final output is at full resolution whatever else it gives."""

    how_to_install = "Run: pip install 'dmx-transfer[networks]'."

    def final_output(self, output: object) -> Tensor:
        """Return the output at full resolution."""
        if isinstance(output, list | tuple) and self.name in _FINAL_LAST:
            output = output[-1]
        output = super().final_output(output)
        # Deep supervision of DynUNet stacks its outputs: [N, outputs, classes, I, J, K], the final one first.
        return output[:, 0] if output.ndim == 6 else output


def _find_class(name: str) -> type[nn.Module]:
    """Return a class of MONAI that takes channels and classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks import nets
    known: dict[str, type[nn.Module]] = {}
    for key, value in vars(nets).items():
        if inspect.isclass(value) and issubclass(value, nn.Module):
            parameters = inspect.signature(value).parameters
            if "in_channels" in parameters and out_name(parameters):
                known[key] = value
    if name not in known:
        classes = {value.__name__ for value in known.values()} | {"multiscale", *NETWORKS}
        raise ModelError(
            f"model.name must be 'multiscale', a network in monai.networks.nets that takes in_channels and "
            f"out_channels, one of nnU-Net ({', '.join(NETWORKS)}), or 'package.module:function' for your own, got "
            f"'{name}'.{suggest(name, classes)}"
        )
    return known[name]


def build_monai(section: ModelSection, *, num_channels: int, num_classes: int, seed: int) -> MonaiNetwork:
    """Return a network of MONAI; its weights depend on the seed alone, and the global random state stays as it is.

    Raises:
        ModelError: No such network, arguments that it does not take, or a package that it needs is missing.
    """
    network_class = _find_class(section.name)
    arguments = call_arguments(network_class, section.arguments, num_channels=num_channels, num_classes=num_classes)
    try:
        with drawn_from(seed, "monai"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = network_class(**arguments)
    except ImportError as error:
        raise missing_package(section.name, error, advice=MonaiNetwork.how_to_install) from error
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"Network {section.name} cannot be built from model.arguments: {first_sentence(error)}."
        ) from error
    name = network_class.__name__
    head = section.head or _FINAL.get(name)
    out = out_name(arguments)
    by_class = sized_by(network, lambda count: network_class(**{**arguments, str(out): count}), num_classes)
    return MonaiNetwork(network, name, num_channels=num_channels, num_classes=num_classes, head=head, by_class=by_class)
