"""Experiments that cannot be used: what is no YAML, what means nothing, what would cost memory or run code."""

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

from tests.faults.world import Bad, World

_HEAD = "name: x\ncohort: {manifest: {root}/cohort.csv}\n"
_COMMANDS = (
    ("train", "{here}/x.yaml"),
    ("config", "show", "{here}/x.yaml"),
    ("model", "show", "{here}/x.yaml"),
    ("transfer", "{here}/x.yaml", "--from-run", "{run}", "--dry-run"),
    ("finetune", "{here}/x.yaml", "--from-run", "{run}"),
)
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "x.yaml"),
    "a list": ("[1, 2]", "x.yaml"),
    "a word": ("word", "x.yaml"),
    "a number": ("12", "x.yaml"),
    "null": ("null", "x.yaml"),
    "two documents": ("name: a\n---\nname: b\n", "x.yaml"),
    "an open bracket": ("name: [a\n", "line"),
    "a tab": ("name:\n\t- a\n", "line"),
    "a bad indent": ("name: x\n  cohort: y\n z: 1\n", "line"),
    "a key twice": (_HEAD + "seed: 1\nseed: 2\n", "seed"),
    "a key twice inside": (_HEAD + "training: {epochs: 1, epochs: 2}\n", "epochs"),
    "a list as key": (_HEAD + "? [1, 2]\n: 3\n", "x.yaml"),
    "a mapping as key": (_HEAD + "? {a: 1}\n: 3\n", "x.yaml"),
    "a number as key": (_HEAD + "1: 2\n", "1"),
    "null as key": (_HEAD + "null: 2\n", "x.yaml"),
    "anchors that explode": (_LAUGHS, "references"),
    "an anchor of itself": ("a: &a [*a]\n", "references"),
    "a merge": ("base: &b {seed: 1}\ntop:\n  <<: *b\n", "references"),
    "a merge of numbers": (_HEAD + "<<: 3\n", "x.yaml"),
    "a Python object": ("name: !!python/object:os.system {}\n", "line"),
    "a Python call": ("name: !!python/object/apply:os.system ['touch hacked']\n", "line"),
    "a Python name": ("name: !!python/name:os.system\n", "line"),
    "a Python module": ("name: !!python/module:os\n", "line"),
    "a Python tuple": ("name: !!python/tuple [1]\n", "line"),
    "an unknown tag": ("name: !thing x\n", "line"),
    "binary": ("name: !!binary aGVsbG8=\n" + _HEAD[8:], "binary"),
    "bad binary": ("name: !!binary '*'\n", "x.yaml"),
    "a set": (_HEAD + "training: !!set {epochs}\n", "training"),
    "a date": ("name: 2020-01-01\n" + _HEAD[8:], "name"),
    "a date that is none": ("name: 2020-99-99\n", "x.yaml"),
    "deep nesting": ("a: " + "[" * 20_000 + "]" * 20_000, "nested"),
    "deep mappings": ("a: " + "{a: " * 5_000 + "1" + "}" * 5_000, "nested"),
    "a number of 100,000 digits": (_HEAD + "seed: " + "9" * 100_000 + "\n", "seed|x.yaml"),
    "a hexadecimal number of 100,000 digits": (_HEAD + "seed: 0x" + "f" * 100_000 + "\n", "seed|x.yaml"),
    "a sexagesimal bomb": (_HEAD + "seed: 1" + ":59" * 20_000 + "\n", "seed|x.yaml"),
    "two megabytes": (_HEAD + "description: " + "x" * 2_000_000, "bytes"),
    "Latin-1": ("name: caf\xe9\n".encode("latin-1"), "UTF-8"),
    "UTF-16 without a mark": ("name: x\n".encode("utf-16-le"), "x.yaml"),
    "NUL bytes": (b"name: \0\n", "x.yaml"),
    "an escape": (b"name: \x1b[31m\n", "x.yaml"),
    "random bytes": (bytes(range(128, 256)) * 8, "UTF-8"),
    "a scan": (b"\x5c\x01\0\0" + b"\0" * 500, "x.yaml"),
    "JSON of another tool": ('{"training": []}', "training|cohort"),
    "Python": ("import os\nos.system('touch hacked')\n", "x.yaml"),
}
# Lines of YAML that stand behind a sound head, and what the sentence must name.
LINES: dict[str, str] = {
    "nonsense: 1": "nonsense",
    "trainings: {epochs: 1}": "training",
    "training: {epoch: 1}": "epochs",
    "training: 5": "training",
    "training: []": "training",
    "training: {epochs: -1}": "epochs",
    "training: {epochs: 0}": "epochs",
    "training: {epochs: many}": "epochs",
    "training: {epochs: 1.5}": "epochs",
    "training: {epochs: .nan}": "epochs",
    "training: {epochs: .inf}": "epochs",
    "training: {epochs: null}": "epochs",
    "training: {epochs: [1]}": "epochs",
    "training: {batch_size: 0}": "batch_size",
    "training: {steps_per_epoch: 0}": "steps_per_epoch",
    "training: {precision: fp8}": "precision",
    "training: {device: tpu}": "device",
    "training: {device: 'cuda:99'}": "cuda",
    "training: {moving_average: 1.5}": "moving_average",
    "training: {moving_average: .nan}": "moving_average",
    "training: {gradient_clip: -1}": "gradient_clip",
    "training: {gradient_clip: .nan}": "gradient_clip",
    "training: {threads: 0}": "threads",
    "training: {deterministic: maybe}": "deterministic",
    "seed: one": "seed",
    "seed: 1.5": "seed",
    "seed: 99999999999999999999999999": "seed",
    "name: null": "name",
    "name: 5": "name",
    "name: ''": "name",
    'name: "a\\e[31mb"': "name",
    "task: classification": "task",
    "compatibility: nnunet": "compatibility",
    "cohort: 5": "cohort",
    "cohort: {}": "manifest",
    "cohort: {manifest: 5}": "manifest",
    "cohort: {manifest: none.csv}": "none.csv",
    'cohort: {manifest: "a\\0b"}': "cohort",
    "cohort: {manifest: '{root}/cohort.csv', channels: [t2]}": "t2",
    "cohort: {manifest: '{root}/cohort.csv', channels: [t1, t1]}": "t1",
    "cohort: {manifest: '{root}/cohort.csv', channels: t1}": "channels",
    "cohort: {manifest: '{root}/cohort.csv', classes: [one]}": "classes",
    "cohort: {manifest: '{root}/cohort.csv', classes: [a, a]}": "a, a",
    "cohort: {manifest: '{root}/cohort.csv', classes: [a, 'b/c']}": "b/c",
    "cohort: {manifest: '{root}/cohort.csv', fold: 9}": "fold",
    "cohort: {manifest: '{root}/cohort.csv', fold: 0, folds: 1}": "folds",
    "cohort: {manifest: '{root}/cohort.csv', fold: 0, folds: 100}": "100",
    "cohort: {manifest: '{root}/cohort.csv', labels: {1: 7}}": "label_map",
    "cohort: {manifest: '{root}/cohort.csv', labels: {a: 1}}": "labels",
    "cohort: {manifest: '{root}/cohort.csv', fill: {t9: 0}}": "t9",
    "cohort: {manifest: '{root}/cohort.csv', fill: {t1: .nan}}": "fill",
    "preprocess: {spacing: [1, 1]}": "spacing",
    "preprocess: {spacing: [0, 1, 1]}": "spacing",
    "preprocess: {spacing: [-1, 1, 1]}": "spacing",
    "preprocess: {spacing: [.nan, 1, 1]}": "spacing",
    "preprocess: {spacing: [.inf, 1, 1]}": "spacing",
    "preprocess: {spacing: [1.0e-9, 1.0e-9, 1.0e-9]}": "spacing",
    "preprocess: {spacing: mean}": "spacing",
    "preprocess: {orientation: upwards}": "orientation",
    "preprocess: {crop_margin: -1}": "crop_margin",
    "preprocess: {normalize: {method: window}}": "window",
    "preprocess: {normalize: {method: window, window: [1, 0]}}": "window",
    "preprocess: {normalize: {method: window, window: [.nan, 1]}}": "window",
    "preprocess: {normalize: {percentiles: [-1, 50]}}": "percentiles",
    "preprocess: {normalize: {channels: [t9]}}": "t9",
    "preprocess: {normalize: {within_std: [.nan, 1]}}": "within_std",
    "sampling: {segment: 0}": "segment",
    "sampling: {segment: -5}": "segment",
    "sampling: {segment: [5, 5]}": "segment",
    "sampling: {segment: 3}": "segment",
    "sampling: {segment: 100000}": "segment",
    "sampling: {categories: nowhere}": "categories",
    "sampling: {proportions: [0, 0]}": "proportions",
    "sampling: {proportions: []}": "proportions",
    "sampling: {proportions: [1, 1, 1, 1]}": "proportions",
    "sampling: {proportions: [.nan, 1]}": "proportions",
    "sampling: {proportions: [.inf, 1]}": "proportions",
    "sampling: {weight_maps: [none]}": "weight_maps",
    "sampling: {weight_maps: [none, more]}": "none",
    "sampling: {workers: -1}": "workers",
    "sampling: {workers: 100000}": "workers",
    "sampling: {memory_gb: .nan}": "memory_gb",
    "sampling: {cases_per_epoch: 0}": "cases_per_epoch",
    "model: {name: NoNetwork}": "NoNetwork",
    "model: {name: UNet}": "UNet",
    "model: {name: UNet, arguments: {channels: -4, strides: [2]}}": "UNet",
    "model: {name: os.system}": "os.system",
    "model: {arguments: {a: 1}}": "arguments",
    "model: {normal: {widths: []}}": "widths",
    "model: {normal: {widths: [0]}}": "widths",
    "model: {normal: {widths: [-4]}}": "widths",
    "model: {normal: {widths: [4], kernels: 0}}": "kernels",
    "model: {normal: {widths: [4, 4], kernels: [3]}}": "kernels",
    "model: {normal: {widths: [4], residual: [9]}}": "residual",
    "model: {normal: {dropout: 2}}": "dropout",
    "model: {normal: {dropout: .nan}}": "dropout",
    "model: {normal: {padding: wrap}}": "padding",
    "model: {fc: {widths: [0]}}": "widths",
    "model: {subsampled: [{factor: 0}]}": "factor",
    "model: {subsampled: [{factor: -3}]}": "factor",
    "model: {subsampled: [{factor: 10000}]}": "factor",
    "model: {subsampled: 5}": "subsampled",
    "model: {activation: magic}": "activation",
    "model: {normalization: {name: layer}}": "normalization",
    "model: {normalization: {name: batch_rolling, steps: 0}}": "steps",
    "model: {normalization: {name: group, groups: 0}}": "groups",
    "model: {normalization: {momentum: .nan}}": "momentum",
    "model: {weight_init: {scale: -1}}": "scale",
    "model: {weight_init: {name: normal, std: .inf}}": "std",
    "optimizer: {name: magic}": "optimizer",
    "optimizer: {lr: -1}": "lr",
    "optimizer: {lr: .nan}": "lr",
    "optimizer: {lr: fast}": "lr",
    "optimizer: {momentum: 5}": "momentum",
    "schedule: {name: magic}": "schedule",
    "losses: {magic: 1}": "losses",
    "losses: {dice: -1}": "dice",
    "losses: {cross_entropy: .nan}": "cross_entropy",
    "losses: {cross_entropy: 0}": "losses",
    "regularization: {l2: -1}": "l2",
    "regularization: {l1: .nan}": "l1",
    "freeze: {normal: 99}": "99",
    "freeze: {normal: [0]}": "normal",
    "freeze: {normal: 3-1}": "3-1",
    "freeze: {normal: x}": "normal",
    "freeze: {layers: [nothing.like.this]}": "nothing.like.this",
    "freeze: {unfreeze: {0: {normal: 1}}}": "unfreeze",
    "freeze: {unfreeze: {9999: {normal: 1}}}": "9999|unfreeze",
    "freeze: {subsampled: {nobody: 1}}": "nobody",
    "freeze: {normal: 1-99999999999}": "normal",
    "validation: {segments: -1}": "segments",
    "validation: {every_epochs: -1}": "every_epochs",
    "validation: {segment: 2}": "segment",
    "checkpoints: {every_epochs: 0}": "every_epochs",
    "checkpoints: {keep_last: 0}": "keep_last",
    "checkpoints: {best_metric: nothing}": "nothing",
    "checkpoints: {best_metric: val/dice, best_mode: sideways}": "best_mode",
    "prediction: {overlap: 1}": "overlap",
    "prediction: {overlap: .nan}": "overlap",
    "prediction: {mirror: [3]}": "mirror",
    "prediction: {tile: 0}": "tile",
    "prediction: {tile: -3}": "tile",
    "prediction: {batch_size: 0}": "batch_size",
    "tracking: {uri: nowhere}": "run store",
    "tracking: {uri: 'file:///tmp/x'}": "run store",
    "tracking: {uri: 'magic://x'}": "magic",
    "tracking: {uri: 'sqlite:////proc/none/mlflow.db'}": "run store",
    "tracking: {uri: 5}": "uri",
    "tracking: {experiment: ''}": "experiment",
    "augmentation: {nonsense: 1}": "nonsense",
    "augmentation: 3": "augmentation",
    "transfer: {sources: {a: {}}}": "sources",
    "transfer: {sources: {a: {run: nobody}}}": "nobody",
    "transfer: {sources: {a: {file: none.pt}}}": "none.pt",
    "transfer: {sources: {a: {run: x, file: y}}}": "sources",
    "transfer: {layers: [0], sources: {a: {run: '{run}'}}}": "layers",
    "transfer: {layers: [99], sources: {a: {run: '{run}'}}}": "99",
    "transfer: 5": "Transfer",
}


def _base(world: World) -> dict[str, object]:
    import yaml

    base: dict[str, object] = yaml.safe_load(world.experiment.read_text())
    return base


def _merged(world: World, line: str) -> str:
    """Return the sound experiment with what a line says in its place, keys of a section beside the others."""
    import yaml

    from dmx.config.yaml_loader import parse_yaml

    base = _base(world)
    placed = line.replace("{root}", str(world.root)).replace("{run}", world.run_id)
    for key, value in parse_yaml(placed).items():
        section = base.get(key)
        fresh = key in ("cohort", "transfer") or line.startswith("model: {name")
        base[key] = (
            {**section, **value} if isinstance(section, dict) and isinstance(value, dict) and not fresh else value
        )
    return yaml.safe_dump(base)


def texts() -> Iterator[Bad]:
    turn = cycle(_COMMANDS)
    for name, (text, part) in TEXTS.items():

        def make(world: World, here: Path, text: str | bytes = text) -> None:
            data = text if isinstance(text, bytes) else text.replace("{root}", str(world.root)).encode()
            (here / "x.yaml").write_bytes(data)

        words = next(turn)
        yield Bad(f"{name}: {words[0]}", words, (part,), make)


def lines() -> Iterator[Bad]:
    for line, part in LINES.items():

        def make(world: World, here: Path, line: str = line) -> None:
            (here / "x.yaml").write_text(_merged(world, line))

        yield Bad(f"{line}: train", _COMMANDS[0], (part,), make)


NO_FILES: dict[str, Callable[[World, Path], object]] = {
    "a folder": lambda world, here: (here / "x.yaml").mkdir(),
    "nothing there": lambda world, here: None,
    "a device": lambda world, here: (here / "x.yaml").symlink_to("/dev/zero"),
}


def files() -> Iterator[Bad]:
    for name, make in NO_FILES.items():
        for words in _COMMANDS:
            yield Bad(f"{name} as experiment: {words[0]}", words, ("x.yaml",), make)


def bad_settings() -> list[Bad]:
    return [*texts(), *lines(), *files()]
