"""Folders of trained models as nnU-Net v2 writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ARCHITECTURES = "dynamic_network_architectures.architectures"
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 1]]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 1]]


def plans(name: str = "PlainConvUNet", **settings: Any) -> dict[str, Any]:
    """Return plans of two channels and three classes whose axes all differ."""
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 12, 16],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, False],
        "architecture": {
            "network_class_name": f"{ARCHITECTURES}.unet.{name}",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 6, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": KERNELS,
                "strides": STRIDES,
                blocks: [1, 2, 1],
                "n_conv_per_stage_decoder": [1, 2],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    numbers = {"mean": 90.0, "std": 40.0, "percentile_00_5": -10.0, "percentile_99_5": 200.0, "max": 900.0}
    return {
        "dataset_name": "Dataset123_Balls",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": {**configuration, **settings}},
        "foreground_intensity_properties_per_channel": {"0": numbers, "1": numbers},
    }


def dataset(**settings: Any) -> dict[str, Any]:
    """Return a dataset of two channels and three classes."""
    labels = {"background": 0, "ball": 1, "shell": 2}
    return {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz", **settings}


def network(content: dict[str, Any], *, channels: int = 2, classes: int = 3) -> nn.Module:
    """Return the package's own network by a configuration, in nnU-Net's axes, with weights of all sizes."""
    unet = pytest.importorskip(f"{ARCHITECTURES}.unet")
    architecture = content["configurations"]["3d_fullres"]["architecture"]
    arguments = {
        **architecture["arch_kwargs"],
        "conv_op": nn.Conv3d,
        "norm_op": nn.InstanceNorm3d,
        "nonlin": nn.LeakyReLU,
    }
    torch.manual_seed(0)
    made: nn.Module = getattr(unet, architecture["network_class_name"].rpartition(".")[2])(
        input_channels=channels, num_classes=classes, deep_supervision=True, **arguments
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def checkpoint(module: nn.Module, content: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Return what ``checkpoint_final.pth`` holds after three epochs."""
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.99, nesterov=True)
    return {
        "network_weights": module.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "logging": {
            "mean_fg_dice": [np.float64(0.1), np.float64(0.4)],
            "dice_per_class_or_region": [[np.float32(0.1), np.float64(0.2)]],
            "train_losses": [np.float32(-0.3)],
            "epoch_start_timestamps": [1700000000.25],
        },
        "_best_ema": np.float64(0.25),
        "current_epoch": 3,
        "init_args": {
            "plans": content,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": described,
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
    }


def write(
    folder: Path, content: dict[str, Any], described: dict[str, Any] | None = None, *, fold: str = "fold_0"
) -> nn.Module:
    """Write a trained model and return its network."""
    described = described or dataset()
    module = network(content, channels=len(described["channel_names"]), classes=len(described["labels"]))
    (folder / fold).mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(described))
    torch.save(checkpoint(module, content, described), folder / fold / "checkpoint_final.pth")
    return module
