"""The network that a model configuration of DeepMedic v0.8.4 describes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from dmx.config.deepmedic import Assignments, parse_assignments
from dmx.config.model import (
    FCSection,
    ModelSection,
    NormalizationSection,
    Padding,
    PathwaySection,
    SubsampledSection,
    WeightInitSection,
)
from dmx.errors import ConfigError, suggest
from dmx.geometry import Triple

_OPTIONS = (
    "modelName",
    "folderForOutput",
    "numberOfOutputClasses",
    "numberOfInputChannels",
    "numberFMsPerLayerNormal",
    "kernelDimPerLayerNormal",
    "padTypePerLayerNormal",
    "layersWithResidualConnNormal",
    "lowerRankLayersNormal",
    "dropoutRatesNormal",
    "useSubsampledPathway",
    "numberFMsPerLayerSubsampled",
    "kernelDimPerLayerSubsampled",
    "padTypePerLayerSubsampled",
    "subsampleFactor",
    "layersWithResidualConnSubsampled",
    "lowerRankLayersSubsampled",
    "dropoutRatesSubsampled",
    "numberFMsPerLayerFC",
    "kernelDimPerLayerFC",
    "padTypePerLayerFC",
    "layersWithResidualConnFC",
    "dropoutRatesFc",
    "segmentsDimTrain",
    "segmentsDimVal",
    "segmentsDimInference",
    "convWeightsInit",
    "activationFunction",
    "rollAverageForBNOverThatManyBatches",
)
_PADDINGS: dict[str | None, Padding] = {None: "valid", "VALID": "valid", "zero": "zero", "mirror": "mirror"}
_ACTIVATIONS = ("prelu", "relu", "elu", "linear")
Activation = Literal["prelu", "relu", "elu", "linear"]


@dataclass(frozen=True, kw_only=True)
class DeepMedicModel:
    """What a model configuration says.

    Attributes:
        name: Name of the model.
        section: The network.
        num_channels: Channels of the scans.
        num_classes: Classes, background included.
        training_segment: Size of training segments.
        validation_segment: Size of validation segments; ``None``: the receptive field.
        tile: Size of the segments that a whole scan is predicted by.
        notes: What the user should know, one sentence each.
    """

    name: str
    section: ModelSection
    num_channels: int
    num_classes: int
    training_segment: Triple
    validation_segment: Triple | None
    tile: Triple
    notes: tuple[str, ...]


def read_model_config(text: str, *, source: str) -> DeepMedicModel:
    """Return what a model configuration describes; it is parsed, never executed.

    Args:
        text: Content of ``modelConfig.cfg``.
        source: What sentences call it.

    Raises:
        ConfigError: It cannot be parsed, or an option is missing or cannot be expressed here.
    """
    options = _Options(_parsed(text, source), source)
    for name in ("lowerRankLayersNormal", "lowerRankLayersSubsampled"):
        if options.get(name):
            raise ConfigError(f"{source}: '{name}' must be empty: DeepMedic builds no network with it.")
    training = options.triple("segmentsDimTrain")
    return DeepMedicModel(
        name=str(options.get("modelName") or "deepmedic"),
        section=_section(options),
        num_channels=options.number("numberOfInputChannels", lowest=1),
        num_classes=options.number("numberOfOutputClasses", lowest=2),
        training_segment=training,
        validation_segment=options.triple("segmentsDimVal") if options.has("segmentsDimVal") else None,
        tile=options.triple("segmentsDimInference") if options.has("segmentsDimInference") else training,
        notes=tuple(
            f"{source}: '{name}' is no option of DeepMedic's model and was left out, as DeepMedic does."
            f"{suggest(name, _OPTIONS)}"
            for name in sorted(options.assignments.values.keys() - set(_OPTIONS))
        ),
    )


def _parsed(text: str, source: str) -> Assignments:
    assignments = parse_assignments(text)
    if assignments is None:
        raise ConfigError(f"'{source}' is no configuration of DeepMedic: it is not Python.")
    for name in _OPTIONS:
        if name in assignments.unread:
            raise ConfigError(f"{source}: '{name}' must be a plain value; expressions are not executed.")
    if assignments.other_lines:
        raise ConfigError(
            f"{source}, line {assignments.other_lines[0]}: only assignments such as 'numberOfOutputClasses = 5' can be "
            "read; configurations are not executed. Write the values out."
        )
    return assignments


class _Options:
    """Options by name, each checked for its kind."""

    def __init__(self, assignments: Assignments, source: str) -> None:
        self.assignments = assignments
        self._source = source

    def get(self, name: str) -> Any:
        return self.assignments.values.get(name)

    def has(self, name: str) -> bool:
        """Tell whether an option is given; DeepMedic takes None for not given."""
        return self.get(name) is not None

    def wrong(self, name: str, allowed: str) -> ConfigError:
        if not self.has(name):
            return ConfigError(f"{self._source}: '{name}' is missing; it must be {allowed}.")
        return ConfigError(f"{self._source}: '{name}' must be {allowed}, got {str(self.get(name))[:60]}.")

    def number(self, name: str, *, lowest: int) -> int:
        value = self.get(name)
        if not _whole(value) or value < lowest:
            raise self.wrong(name, f"a whole number of at least {lowest}")
        return int(value)

    def triple(self, name: str) -> Triple:
        return self._triple(name, self.get(name))

    def triples(self, name: str) -> tuple[Triple, ...]:
        values = self.get(name)
        if not isinstance(values, list | tuple) or not values:
            raise self.wrong(name, "a list of three whole numbers per entry")
        return tuple(self._triple(name, value) for value in values)

    def _triple(self, name: str, value: Any) -> Triple:
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(_whole(n) and n >= 1 for n in value):
            raise self.wrong(name, "three whole numbers of at least 1")
        i, j, k = value
        return (i, j, k)

    def numbers(self, name: str) -> tuple[int, ...]:
        values = self.get(name)
        if not isinstance(values, list | tuple) or not all(_whole(value) and value >= 1 for value in values):
            raise self.wrong(name, "a list of whole numbers of at least 1")
        return tuple(values)

    def rates(self, name: str) -> tuple[float, ...]:
        values = self.get(name)
        if not isinstance(values, list | tuple) or not all(_number(value) for value in values):
            raise self.wrong(name, "a list of numbers")
        return tuple(float(value) for value in values)

    def paddings(self, name: str) -> Padding | tuple[Padding, ...]:
        if not self.has(name):
            return "valid"
        values = self.get(name)
        if not isinstance(values, list | tuple) or not all(
            value is None or (isinstance(value, str) and value in _PADDINGS) for value in values
        ):
            raise self.wrong(name, "a list of None, 'VALID', 'zero' or 'mirror'")
        return tuple(_PADDINGS[value] for value in values)

    def dropout(self, name: str) -> float | tuple[float, ...]:
        return (self.rates(name) if self.has(name) else ()) or 0.0

    def positions(self, name: str) -> tuple[int, ...]:
        return self.numbers(name) if self.has(name) else ()


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _section(options: _Options) -> ModelSection:
    normal = PathwaySection(
        widths=options.numbers("numberFMsPerLayerNormal"),
        kernels=options.triples("kernelDimPerLayerNormal"),
        residual=options.positions("layersWithResidualConnNormal"),
        padding=options.paddings("padTypePerLayerNormal"),
        dropout=options.dropout("dropoutRatesNormal"),
    )
    return ModelSection(
        normal=normal,
        subsampled=_subsampled(options, normal) if options.get("useSubsampledPathway") else (),
        fc=_fc(options),
        activation=_activation(options),
        normalization=_normalization(options),
        weight_init=_weight_init(options),
    )


def _subsampled(options: _Options, normal: PathwaySection) -> tuple[SubsampledSection, ...]:
    """Return one section per pathway.

    There are as many as the longer one of the lists of widths and factors says; the last widths are repeated, the last
    factor grows by 2.
    """
    widths = _nested(options, "numberFMsPerLayerSubsampled") or [normal.widths]
    factors = _nested(options, "subsampleFactor") or [(3, 3, 3)]
    if any(len(factor) != 3 for factor in factors):
        raise options.wrong("subsampleFactor", "three whole numbers, or a list of such")
    if len({len(entry) for entry in widths}) > 1:
        raise options.wrong("numberFMsPerLayerSubsampled", "lists of the same length")
    while len(widths) < len(factors):
        widths.append(widths[-1])
    while len(factors) < len(widths):
        factors.append(tuple(size + 2 for size in factors[-1]))
    name = "kernelDimPerLayerSubsampled"
    kernels = options.triples(name) if options.has(name) else cast(tuple[Triple, ...], normal.kernels)
    name = "layersWithResidualConnSubsampled"
    residual = options.positions(name) if options.has(name) else normal.residual
    return tuple(
        SubsampledSection(
            factor=cast(Triple, factor),
            widths=entry,
            kernels=kernels,
            residual=residual,
            padding=options.paddings("padTypePerLayerSubsampled"),
            dropout=options.dropout("dropoutRatesSubsampled"),
        )
        for factor, entry in zip(factors, widths, strict=True)
    )


def _nested(options: _Options, name: str) -> list[tuple[int, ...]]:
    """Return lists of numbers; a single one counts as a list of one."""
    value = options.get(name)
    if value is None:
        return []
    if isinstance(value, list | tuple) and not any(isinstance(entry, list | tuple) for entry in value):
        return [options.numbers(name)]
    lists = value if isinstance(value, list | tuple) else ()
    if not lists or not all(
        isinstance(entry, list | tuple) and all(_whole(size) and size >= 1 for size in entry) for entry in lists
    ):
        raise options.wrong(name, "a list of whole numbers, or a list of such lists")
    return [tuple(entry) for entry in lists]


def _fc(options: _Options) -> FCSection:
    has_kernels = options.has("kernelDimPerLayerFC")
    return FCSection(
        widths=options.numbers("numberFMsPerLayerFC") if options.has("numberFMsPerLayerFC") else (),
        kernels=options.triples("kernelDimPerLayerFC") if has_kernels else 1,
        residual=options.positions("layersWithResidualConnFC"),
        padding=options.paddings("padTypePerLayerFC"),
        dropout=(options.dropout("dropoutRatesFc") if options.has("dropoutRatesFc") else None),
    )


def _activation(options: _Options) -> Activation:
    name = options.get("activationFunction") or "prelu"
    if name not in _ACTIVATIONS:
        raise options.wrong("activationFunction", f"{_words(_ACTIVATIONS)} (others make DeepMedic fail)")
    return cast(Activation, name)


def _words(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _normalization(options: _Options) -> NormalizationSection:
    steps = options.get("rollAverageForBNOverThatManyBatches")
    steps = 60 if steps is None else steps
    if not _whole(steps):
        raise options.wrong("rollAverageForBNOverThatManyBatches", "a whole number")
    return NormalizationSection(name="batch_rolling", steps=steps) if steps > 0 else NormalizationSection(name="none")


def _weight_init(options: _Options) -> WeightInitSection:
    value = options.get("convWeightsInit") or ["fanIn", 2]
    kind, number = value if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
    if kind not in ("fanIn", "normal") or not _number(number):
        raise options.wrong("convWeightsInit", "['fanIn', SCALE] or ['normal', DEVIATION]")
    number = cast(float, number)
    if kind == "fanIn":
        return WeightInitSection(name="fan_in", scale=float(number))
    return WeightInitSection(name="normal", std=float(number))
