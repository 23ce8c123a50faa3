"""What a training keeps of the weights it began with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Origin:
    """The weights at the beginning, as far as the training still needs them.

    Attributes:
        received: Parameter → how it came from a source: ``copied`` whole, ``sliced``, ``adapted``. One that is missing
            was initialized.
        sources: Values that parameters are pulled to (L2-SP).
        digests: SHA-256 of each frozen tensor before the first step.
        checks: When frozen tensors were compared with that, and what came out.
    """

    received: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Tensor] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, received: Mapping[str, str], *, keep_sources: bool) -> "Origin":
        """Return the origin of a training whose network has its first weights.

        Args:
            model: The network, on its device.
            received: Parameter → how it came from a source.
            keep_sources: Whether the values of what was copied whole are needed later.
        """
        kept = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if keep_sources and received.get(name) == "copied"
        }
        return cls(received=dict(received), sources=kept)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values."""
        return {
            "received": dict(self.received),
            "sources": dict(self.sources),
            "digests": dict(self.digests),
            "checks": [dict(check) for check in self.checks],
        }

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Take over a state; its tensors go where the network is."""
        devices = {name: parameter.device for name, parameter in model.named_parameters()}
        self.received = dict(state["received"])
        self.sources = {name: tensor.to(devices[name]) for name, tensor in state["sources"].items()}
        self.digests = dict(state["digests"])
        self.checks = [dict(check) for check in state["checks"]]
