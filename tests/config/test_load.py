import json
from pathlib import Path

import pytest

from dmx.config.load import (
    as_changed_yaml,
    as_dict,
    as_yaml,
    build_experiment,
    config_diff,
    json_schema,
    load_experiment,
)
from dmx.config.yaml_loader import dump_yaml, parse_yaml
from dmx.errors import ConfigError

MINIMAL = "name: tiny\ncohort: {manifest: cohort.csv}\n"


@pytest.fixture
def experiment_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("code", ["ras", "RAR", "RA", "RASL", "LPX", ""])
def test_an_orientation_names_three_directions(code: str) -> None:
    values = {"name": "x", "cohort": {"manifest": ""}, "preprocess": {"orientation": code}}
    with pytest.raises(ConfigError, match=f"three letters, one each of R or L.*got '{code}'"):
        build_experiment(values)
    assert build_experiment({**values, "preprocess": {"orientation": "LIA"}}).preprocess.orientation == "LIA"


def refuse(text: str, tmp_path: Path, *overrides: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


def test_a_minimal_experiment_gets_every_default_and_an_absolute_manifest(experiment_file: Path) -> None:
    experiment = load_experiment(experiment_file)
    assert experiment.training.epochs == 35
    assert experiment.cohort.manifest == str(experiment_file.parent / "cohort.csv")


def test_the_resolved_configuration_is_accepted_back_and_says_the_same(experiment_file: Path, tmp_path: Path) -> None:
    first = load_experiment(
        experiment_file, ["model.subsampled=[{factor: 3}, {factor: [5, 5, 1]}]", "preprocess.spacing=off"]
    )
    again = tmp_path / "elsewhere" / "config.yaml"
    again.parent.mkdir()
    again.write_text(as_yaml(first))
    assert load_experiment(again) == first


def test_overrides_reach_nested_settings_and_list_positions(experiment_file: Path) -> None:
    words = ["training.epochs=5", "optimizer.lr=1e-2", "model.subsampled=[{factor: 3}]", "model.subsampled.0.factor=5"]
    experiment = load_experiment(experiment_file, words)
    assert experiment.training.epochs == 5
    assert experiment.optimizer.lr == 0.01
    assert experiment.model.subsampled[0].factor == 5


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    assert refuse(MINIMAL + "training: {epoch: 3}\n", tmp_path).endswith(
        "unknown setting 'training.epoch'. Did you mean 'epochs'?"
    )
    assert "Did you mean 'factor'" in refuse(MINIMAL + "model: {subsampled: [{factr: 3}]}\n", tmp_path)
    assert "Did you mean 'sampling'" in refuse(MINIMAL + "samplin: {}\n", tmp_path)


def test_all_findings_come_in_one_sentence(tmp_path: Path) -> None:
    message = refuse(MINIMAL + "training: {epochs: many}\nsampling: {memory_gb: -1}\n", tmp_path)
    assert "training.epochs" in message
    assert "'many'" in message
    assert "memory_gb must be above 0, got -1" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: a\nname: b\n", "line 2: 'name' stands twice"),
        ("a: &x [1]\nb: *x\n", "references (*name) are not allowed"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("- 1\n", "must hold settings"),
        ("name: [\n", "line"),
        ("name: tiny\n", "setting 'cohort' is missing"),
    ],
)
def test_bad_yaml_is_one_sentence_with_the_line(text: str, part: str, tmp_path: Path) -> None:
    assert part in refuse(text, tmp_path)


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_experiment(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("word", ["training.epochs", "=3", "training.epochs=[", "name.x=3"])
def test_a_malformed_override_is_refused(word: str, tmp_path: Path) -> None:
    assert "--set" in refuse(MINIMAL, tmp_path, word)


def test_off_is_a_word_and_numbers_may_have_an_exponent(tmp_path: Path) -> None:
    raw = {"name": "x", "cohort": {"manifest": "m.csv"}}
    assert build_experiment(raw | {"preprocess": {"spacing": "off"}}).preprocess.spacing == "off"
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL + "preprocess: {spacing: off}\noptimizer: {lr: 1e-3}\n")
    assert load_experiment(path).optimizer.lr == 0.001


def test_config_diff_names_what_changed_and_nothing_else(experiment_file: Path) -> None:
    before = as_dict(load_experiment(experiment_file))
    after = as_dict(load_experiment(experiment_file, ["training.epochs=5"]))
    assert config_diff(before, after) == {"training.epochs": (35, 5)}


def test_the_schema_describes_every_setting() -> None:
    schema = json.dumps(json_schema())
    assert "Segments per forward pass." in schema
    assert '"additionalProperties": false' in schema


def test_only_what_differs_from_the_defaults_is_shown_and_reads_back(experiment_file: Path, tmp_path: Path) -> None:
    experiment = load_experiment(experiment_file, ["training.epochs=5", "cohort.fold=1"])
    text = as_changed_yaml(experiment)
    assert "epochs: 5" in text
    assert "optimizer" not in text
    (tmp_path / "changed.yaml").write_text(text)
    assert load_experiment(tmp_path / "changed.yaml") == experiment


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ("checkpoints: {every_steps: 0}", "every_steps must be at least 1, got 0"),
        ("checkpoints: {early_stopping: 0}", "early_stopping must be at least 1"),
        ("validation: {max_volumes: -1}", "max_volumes must be at least 1"),
        ("training: {threads: 0}", "threads must be at least 1"),
        ("training: {moving_average: 1.0}", "below 1, got 1.0"),
        ("schedule: {patience: 0}", "patience must be at least 1"),
        ("schedule: {name: exponential, final_lr: -1}", "final_lr"),
        ("optimizer: {betas: [1, 1]}", "betas must be at least 0 and below 1"),
        ("optimizer: {rho: 5}", "rho"),
        ("augmentation: {reflect: {probability: [2, 0, 0]}}", "probability must be between"),
        ("augmentation: {deepmedic: {reflect: [2, 0, 0]}}", "reflect must be between"),
        ("augmentation: {deepmedic: {affine: {prob: 7}}}", "prob must be between"),
        ("model: {name: UNet, normal: {widths: [3]}}", "normal belongs to 'multiscale'"),
        ("model: {arguments: {a: 1}}", "belong to networks of MONAI"),
        ("sampling: {proportions: [0, 0]}", "not all 0"),
        ("preprocess: {normalize: {method: window}}", "window"),
        ("losses: {cross_entropy: 0}", "one above 0"),
        ("schedule: {name: steps}", "at_epochs"),
    ],
)
def test_values_without_meaning_are_refused(section: str, part: str, tmp_path: Path) -> None:
    assert part in refuse(MINIMAL + section + "\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{4:2}", {4: 2}),
        ("{17:Anterior,53: Posterior}", {17: "Anterior", 53: "Posterior"}),
        ("{a:b: 1}", {"a:b": 1}),
        ("4:2", "4:2"),
        ("12:30:45", "12:30:45"),
        ("010", 10),
        ("0o10", 8),
        ("08", 8),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1_000", 1000),
        ("[on, off, yes, no]", ["on", "off", "yes", "no"]),
        ("2026-11-30", "2026-11-30"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["4:2", "0o10", "1e3", "08", "on", "2026-11-30", "=", "~", "", 1e-5, 1e22, 8, True, None]
)
def test_what_is_written_is_read_as_the_same_value(value: object) -> None:
    found = parse_yaml(dump_yaml({"a": value}))["a"]
    assert found == value
    assert type(found) is type(value)


def test_label_values_of_the_command_line_are_no_numbers_of_base_60(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    assert load_experiment(path, ["cohort.labels={4:2}"]).cohort.labels == {4: 2}
    assert load_experiment(path, ["cohort.labels={17:Anterior,53:2}"]).cohort.labels == {17: "Anterior", 53: 2}
