"""Turn gradients into updates: SGD, RMSProp, Adam, AdamW, as torch defines them or as DeepMedic v0.8.4 does.

The state is plain tensors by parameter name. A parameter that is frozen (``requires_grad`` is False) or that got no
gradient is neither touched nor given a state. Written with g the gradient, m the momentum, k = 1 - m if
``normalized_momentum`` else 1:

=========  ==============================================  ====================================================
           ``compatibility: none``                         ``compatibility: deepmedic``
=========  ==============================================  ====================================================
sgd        d = k·g                                         s = k·lr·g
rmsprop    a = r·a + (1-r)·g²; d = k·g / (√a + ε)          a the same; s = k·lr·g / √(a + ε)
momentum   v = m·v + d; W -= lr·v, Nesterov: lr·(d + m·v)  v = m·v - s; W += v, Nesterov: m·v - s
adam       W -= lr·m̂ / (√v̂ + ε), both unbiased            W -= lr·√(1-β₂ᵗ)/(1-β₁ᵗ)·m / (√v + ε)
adamw      W *= 1 - lr·weight_decay (kernels), then adam   as adam, DeepMedic has none
=========  ==============================================  ====================================================

r is ``rho``, ε ``epsilon``, β ``betas``. With a constant learning rate the two forms of sgd are equal; when it changes,
torch's applies the new rate to the whole history. DeepMedic's ε inside of the root (1e-4) divides small gradients by
1e-2, torch's outside of it by 1e-4: without compatibility the steps of rmsprop are larger where gradients are small.
Sources: Sutskever et al. 2013 (Nesterov), Tieleman and Hinton 2012 (RMSProp), Kingma and Ba 2015 (Adam), Loshchilov and
Hutter 2019 (AdamW).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dmx.config.optimization import OptimizerSection
from dmx.errors import CheckpointError, ConfigError
from dmx.training.settings import Compatibility

Tensors = list[Tensor] | tuple[Tensor, ...]
Slots = Mapping[str, Tensors]
Rule = Callable[[Tensors, Tensors, Slots, OptimizerSection, float, int], None]


def _scale(section: OptimizerSection) -> float:
    return 1.0 - section.momentum if section.normalized_momentum else 1.0


def _momentum(params: Tensors, directions: Tensors, velocities: Tensors, section: OptimizerSection, lr: float) -> None:
    """Update as torch does; `directions` is overwritten."""
    torch._foreach_mul_(velocities, section.momentum)
    torch._foreach_add_(velocities, directions)
    if section.nesterov:
        torch._foreach_add_(directions, velocities, alpha=section.momentum)
        torch._foreach_add_(params, directions, alpha=-lr)
    else:
        torch._foreach_add_(params, velocities, alpha=-lr)


def _deepmedic_momentum(params: Tensors, steps: Tensors, velocities: Tensors, section: OptimizerSection) -> None:
    """Update as DeepMedic does; `steps` already contain the learning rate."""
    torch._foreach_mul_(velocities, section.momentum)
    torch._foreach_sub_(velocities, steps)
    if section.nesterov:
        torch._foreach_add_(params, velocities, alpha=section.momentum)
        torch._foreach_sub_(params, steps)
    else:
        torch._foreach_add_(params, velocities)


def _sgd(params: Tensors, grads: Tensors, slots: Slots, section: OptimizerSection, lr: float, _step: int) -> None:
    _momentum(params, torch._foreach_mul(grads, _scale(section)), slots["velocity"], section, lr)


def _deepmedic_sgd(
    params: Tensors, grads: Tensors, slots: Slots, section: OptimizerSection, lr: float, _step: int
) -> None:
    _deepmedic_momentum(params, torch._foreach_mul(grads, _scale(section) * lr), slots["velocity"], section)


def _mean_square(grads: Tensors, squares: Tensors, decay: float) -> None:
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, grads, grads, value=1.0 - decay)


def _rmsprop(params: Tensors, grads: Tensors, slots: Slots, section: OptimizerSection, lr: float, _step: int) -> None:
    _mean_square(grads, slots["square"], section.rho)
    roots = torch._foreach_sqrt(slots["square"])
    torch._foreach_add_(roots, _epsilon(section))
    directions = torch._foreach_div(torch._foreach_mul(grads, _scale(section)), roots)
    _momentum(params, directions, slots["velocity"], section, lr)


def _deepmedic_rmsprop(
    params: Tensors, grads: Tensors, slots: Slots, section: OptimizerSection, lr: float, _step: int
) -> None:
    _mean_square(grads, slots["square"], section.rho)
    roots = torch._foreach_add(slots["square"], _epsilon(section))
    torch._foreach_sqrt_(roots)
    steps = torch._foreach_div(torch._foreach_mul(grads, _scale(section) * lr), roots)
    _deepmedic_momentum(params, steps, slots["velocity"], section)


def _moments(grads: Tensors, slots: Slots, section: OptimizerSection) -> None:
    torch._foreach_lerp_(slots["mean"], grads, 1.0 - section.betas[0])
    _mean_square(grads, slots["square"], section.betas[1])


def _adam(params: Tensors, grads: Tensors, slots: Slots, section: OptimizerSection, lr: float, step: int) -> None:
    _moments(grads, slots, section)
    unbias_mean, unbias_square = (1.0 - beta**step for beta in section.betas)
    roots = torch._foreach_sqrt(slots["square"])
    torch._foreach_div_(roots, unbias_square**0.5)
    torch._foreach_add_(roots, _epsilon(section))
    torch._foreach_addcdiv_(params, slots["mean"], roots, value=-lr / unbias_mean)


def _deepmedic_adam(
    params: Tensors, grads: Tensors, slots: Slots, section: OptimizerSection, lr: float, step: int
) -> None:
    _moments(grads, slots, section)
    unbias_mean, unbias_square = (1.0 - beta**step for beta in section.betas)
    roots = torch._foreach_sqrt(slots["square"])
    torch._foreach_add_(roots, _epsilon(section))
    torch._foreach_addcdiv_(params, slots["mean"], roots, value=-lr * unbias_square**0.5 / unbias_mean)


def _epsilon(section: OptimizerSection) -> float:
    if section.epsilon is not None:
        return section.epsilon
    return 1e-4 if section.name == "rmsprop" else 1e-8


_SLOTS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("velocity",),
    "rmsprop": ("square", "velocity"),
    "adam": ("mean", "square"),
    "adamw": ("mean", "square"),
}
_RULES: Mapping[Compatibility, Mapping[str, Rule]] = {
    "none": {"sgd": _sgd, "rmsprop": _rmsprop, "adam": _adam, "adamw": _adam},
    "deepmedic": {
        "sgd": _deepmedic_sgd,
        "rmsprop": _deepmedic_rmsprop,
        "adam": _deepmedic_adam,
        "adamw": _deepmedic_adam,
    },
}


class Updater(Protocol):
    """Whatever turns gradients into updates: the training's own :class:`Optimizer`, or one of torch's."""

    parameters: dict[str, nn.Parameter]
    scales: Mapping[str, float]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the parameters that the next step changes."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def forget(self, names: Iterable[str]) -> None:
        """Free the state of some parameters."""
        ...

    def step(self, lr: float) -> None:
        """Update each parameter that trains once."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        ...


class Optimizer:
    """Update parameters from their gradients.

    Args:
        parameters: All parameters of the network by name, frozen ones included.
        section: Settings.
        kernels: Convolution and linear weights, on which the weight decay of adamw acts.
        compatibility: Whose definitions hold.

    Attributes:
        parameters: The parameters by name.
        state: Slot (``velocity``, ``square``, ``mean``) → parameter name → tensor of its shape.
        steps: Parameter name → updates that it has had.
        scales: Parameter name → factor of the learning rate; 1 where it is missing.

    Raises:
        ConfigError: A weight decay is given to an optimizer that has none.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        section: OptimizerSection,
        *,
        kernels: Iterable[Tensor] = (),
        compatibility: Compatibility = "none",
    ) -> None:
        if section.weight_decay and section.name != "adamw":
            raise ConfigError(
                f"optimizer.weight_decay must be 0 with '{section.name}', got {section.weight_decay}. Use 'adamw', or "
                "regularization.l2 for a penalty on the kernels."
            )
        self.parameters = dict(parameters)
        self.section = section
        self.state: dict[str, dict[str, Tensor]] = {slot: {} for slot in _SLOTS[section.name]}
        self.steps: dict[str, int] = {}
        self.scales: Mapping[str, float] = {}
        self._rule = _RULES[compatibility][section.name]
        decayed = {id(kernel) for kernel in kernels}
        self._decayed = {name for name, parameter in self.parameters.items() if id(parameter) in decayed}

    @property
    def param_groups(self) -> list[dict[str, list[Tensor]]]:
        """Parameters as the loss scaler of torch looks for them."""
        return [{"params": list(self.parameters.values())}]

    def active(self) -> list[str]:
        """Return the names of the parameters that the next step changes."""
        return [name for name, p in self.parameters.items() if p.requires_grad and p.grad is not None]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the parameters that the next step changes, in the order of :meth:`active`."""
        return [p.grad for p in self.parameters.values() if p.requires_grad and p.grad is not None]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def forget(self, names: Iterable[str]) -> None:
        """Free the state of some parameters; it begins anew when they train."""
        for name in names:
            self.steps.pop(name, None)
            for tensors in self.state.values():
                tensors.pop(name, None)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update each active parameter once with the learning rate `lr`, times its factor."""
        alike: dict[tuple[int, float], list[str]] = {}
        for name in self.active():
            self.steps[name] = self.steps.get(name, 0) + 1
            alike.setdefault((self.steps[name], self.scales.get(name, 1.0)), []).append(name)
        for (count, scale), names in alike.items():
            params: list[Tensor] = [self.parameters[name] for name in names]
            grads = [self.parameters[name].grad for name in names]
            slots = {slot: [self._slot(slot, name) for name in names] for slot in self.state}
            decayed: list[Tensor] = [self.parameters[name] for name in names if name in self._decayed]
            if self.section.weight_decay and decayed:
                torch._foreach_mul_(decayed, 1.0 - lr * scale * self.section.weight_decay)
            self._rule(params, [grad for grad in grads if grad is not None], slots, self.section, lr * scale, count)

    def _slot(self, slot: str, name: str) -> Tensor:
        tensors = self.state[slot]
        if name not in tensors:
            tensors[name] = torch.zeros_like(self.parameters[name], requires_grad=False)
        return tensors[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the state; its tensors are the optimizer's own."""
        return {"state": {slot: dict(tensors) for slot, tensors in self.state.items()}, "steps": dict(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            CheckpointError: It belongs to another optimizer or to other parameters.
        """
        if "ready" in state:
            raise CheckpointError(
                f"This training was made in Python with torch's {state['ready']}, which only dmx.train can go on with, "
                "as a new training."
            )
        if set(state["state"]) != set(self.state):
            raise CheckpointError(
                f"The optimizer's state must hold {', '.join(self.state)} ('{self.section.name}'), got "
                f"{', '.join(state['state']) or 'nothing'}. Resume with the optimizer of the run."
            )
        unknown = sorted(set(state["steps"]) - set(self.parameters))
        if unknown:
            raise CheckpointError(f"The optimizer's state has parameters that the network lacks: {', '.join(unknown)}.")
        self.steps = dict(state["steps"])
        for slot in self.state:
            self.state[slot] = {}
            for name, tensor in state["state"][slot].items():
                self._slot(slot, name).copy_(tensor)
