"""What the settings of a training leave out when its network begins with what a run has learned."""

from collections.abc import Mapping
from typing import Any

from dmx.config.load import as_dict
from dmx.preprocess.contract import Contract
from dmx.preprocess.image_contract import ImageContract
from dmx.workflows.trained import TrainedNetwork


def inherited_settings(trained: TrainedNetwork, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return network, preprocessing and compatibility as the source has them, as far as the task uses them.

    Args:
        trained: The source.
        raw: What the new settings say.
    """
    known, contract = as_dict(trained.experiment), trained.contract
    inherited: dict[str, Any] = {"model": known["model"]}
    if isinstance(contract, ImageContract):
        if raw.get("stimuli"):
            exact = contract.rule == "exact"
            inherited["image_preprocess"] = {
                "resize": list(contract.resize) if exact else contract.resize[0],
                "crop": list(contract.crop),
                "interpolation": contract.interpolation,
                "mean": list(contract.mean),
                "std": list(contract.std),
                "color": contract.color,
            }
    elif not raw.get("stimuli"):
        inherited["preprocess"] = {**known["preprocess"], "spacing": _spacing(contract)}
        if raw.get("task", "segmentation") == "segmentation":
            inherited["compatibility"] = known["compatibility"]
    return inherited


def _spacing(contract: Contract) -> list[float] | str:
    return list(contract.spacing or ()) or "off"
