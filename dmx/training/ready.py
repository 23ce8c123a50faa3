"""An optimizer of torch that somebody has made, in the place of the training's own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmx.errors import CheckpointError, ConfigError


class ReadyOptimizer:
    """Let an optimizer of torch update its parameters; all others of the network stay as they are.

    The learning rate of each of its groups is its base value, which the schedule scales: a step with the rate `lr`, of
    a schedule that begins with :attr:`base`, multiplies it by ``lr / base``. After the step it is what it was.

    Args:
        parameters: All parameters of the network by name.
        optimizer: The optimizer.

    Attributes:
        parameters: All parameters by name.
        names: Names of the parameters that the optimizer has.
        base: Learning rate of its first group.
        scales: Further factors by parameter; none are possible here.

    Raises:
        ConfigError: It has parameters that the network lacks, or needs more than gradients.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError("LBFGS calls the network by itself several times in a step; take another optimizer.")
        self.parameters = dict(parameters)
        self.scales: Mapping[str, float] = {}
        self._optimizer = optimizer
        known = {id(parameter): name for name, parameter in self.parameters.items()}
        held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        foreign = sum(key not in known for key in held)
        if foreign:
            raise ConfigError(
                f"The optimizer has {foreign} parameters that the network lacks. Make it from this network's "
                "parameters, after layers were replaced."
            )
        self.names = frozenset(known[key] for key in held)
        self.base = float(optimizer.param_groups[0]["lr"])
        # A network that has moved to another device since takes the moments along.
        if optimizer.state:
            optimizer.load_state_dict(optimizer.state_dict())

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters as the loss scaler of torch looks for them."""
        return self._optimizer.param_groups

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the parameters that the next step changes."""
        trained = [p for name, p in self.parameters.items() if name in self.names and p.requires_grad]
        return [p.grad for p in trained if p.grad is not None]

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters of the network."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def forget(self, names: Iterable[str]) -> None:
        """Free the state of some parameters; it begins anew when they train."""
        for name in names:
            self._optimizer.state.pop(self.parameters[name], None)

    def step(self, lr: float) -> None:
        """Update each active parameter once."""
        factor = lr / self.base if self.base else 1.0
        groups = self._optimizer.param_groups
        before = [group["lr"] for group in groups]
        for group, own in zip(groups, before, strict=True):
            group["lr"] = own * factor
        try:
            self._optimizer.step()
        finally:
            for group, own in zip(groups, before, strict=True):
                group["lr"] = own

    def state_dict(self) -> dict[str, Any]:
        """Return the state; its tensors are the optimizer's own."""
        return {"ready": type(self._optimizer).__name__, "state": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            CheckpointError: It belongs to another optimizer.
        """
        kind = type(self._optimizer).__name__
        if state.get("ready") != kind:
            raise CheckpointError(
                f"The optimizer's state must be one of torch's {kind}, got {state.get('ready', 'that of dmx itself')}."
            )
        self._optimizer.load_state_dict(state["state"])
