"""Networks of the user's own, and when their code may run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dmx.config import trust
from dmx.config.load import build_experiment, load_experiment
from dmx.config.model import ModelSection
from dmx.errors import CheckpointError, ConfigError, DmxError, ModelError
from dmx.model.build import build_network
from dmx.model.by_task import build_by_task
from dmx.model.network import Network
from dmx.model.sketch import sketch_section

SOURCE = """
from pathlib import Path

from torch import nn

Path("imported").touch()
NUMBER = 3


def small(*, in_channels, out_channels, width=4):
    Path("called").touch()
    return nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.ELU(), nn.Conv3d(width, out_channels, 1))


def by_classes(in_channels, num_classes, **rest):
    assert not rest, "rest"
    return nn.Conv3d(in_channels, num_classes, 1)


def more_classes(in_channels, out_channels):
    return nn.Conv3d(in_channels, out_channels + 1, 1)


def no_module(in_channels, out_channels):
    return [in_channels, out_channels]


def no_sizes(width):
    return nn.Conv3d(width, width, 1)
"""
NAME = "nets.mine:small"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a module of networks, in which nothing is trusted; what was imported is forgotten afterwards."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/mine.py").write_text(SOURCE)
    (tmp_path / "nets/broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "nets/wrong.py").write_text("\nprint(1 / 0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "nets"]:
        del sys.modules[name]


def make(name: str = NAME, *, seed: int = 0, **arguments: object) -> Network:
    return build_network(ModelSection(name=name, arguments=arguments), num_channels=2, num_classes=3, seed=seed)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.VARIABLE, "others:*, net*:*")


@pytest.mark.usefixtures("trusted")
def test_a_function_of_the_user_builds_a_network() -> None:
    path = list(sys.path)
    network = make(width=6)
    assert network([torch.rand(1, 2, 5, 4, 3)]).shape == (1, 3, 5, 4, 3)
    assert [group.name for group in network.layer_groups() if group.is_head] == ["network.2"]
    assert network.state_dict()["network.0.weight"].shape == (6, 2, 3, 3, 3)
    assert make("nets.mine:by_classes").num_classes == 3
    assert sys.path == path


@pytest.mark.usefixtures("trusted")
def test_a_function_that_scores_volumes_is_asked_for_three_axes(project: Path) -> None:
    (project / "nets/scorers.py").write_text(
        "from torch import nn\n"
        "def scorer(spatial_dims, in_channels, num_classes):\n"
        "    conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims](in_channels, 4, 3)\n"
        "    pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[spatial_dims](1)\n"
        "    return nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    section = ModelSection(name="nets.scorers:scorer")
    volumes = build_by_task(section, task="classification", num_channels=2, num_outputs=3)
    assert volumes([torch.rand(1, 2, 9, 8, 7)]).shape == (1, 3)
    assert len(volumes.example_shape) == 3
    images = build_by_task(section, task="classification", num_channels=2, num_outputs=3, spatial_dims=2)
    assert images([torch.rand(1, 2, 9, 8)]).shape == (1, 3)


@pytest.mark.usefixtures("trusted")
def test_weights_are_a_function_of_the_seed_and_leave_the_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (make(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nets.mien:small", {}, ["no module 'nets.mien'", "Did you mean 'mine'?"]),
        ("net.mine:small", {}, ["no module 'net'", "Did you mean 'nets'?"]),
        ("nets.broken:small", {}, ["needs a package that is not installed", "nothing_of_this_name"]),
        ("nets.wrong:small", {}, ["importing 'nets.wrong' failed", "ZeroDivisionError", "wrong.py, line 2"]),
        ("nets.mine:smal", {}, ["has no 'smal'", "Did you mean 'small'?"]),
        ("nets.mine:NUMBER", {}, ["must name a function or class, got int"]),
        ("nets.mine:small", {"widht": 3}, ["holds 'widht', which small does not take", "Did you mean 'width'?"]),
        ("nets.mine:small", {"in_channels": 3}, ["must not hold 'in_channels'"]),
        ("nets.mine:small", {"width": "a"}, ["cannot build its network", "TypeError"]),
        ("nets.mine:by_classes", {"other": 1}, ["AssertionError: rest", "mine.py, line"]),
        ("nets.mine:no_module", {}, ["must return a torch.nn.Module, got list"]),
        ("nets.mine:no_sizes", {}, ["no_sizes must take in_channels and out_channels", "got (width)"]),
    ],
)
def test_what_is_wrong_is_one_sentence(name: str, arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        make(name, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.usefixtures("trusted")
def test_another_number_of_classes_is_refused_when_a_segment_is_planned() -> None:
    with pytest.raises(ModelError, match=r"output has the shape \(2, 4, 8, 8, 8\) where \(2, 3, 8, 8, 8\) is needed"):
        make("nets.mine:more_classes").segment_plan((8, 8, 8))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nets.mine.small", "did you mean 'nets.mine:small'?"),
        ("nets/mine.py:small", "did you mean 'nets.mine:small'?"),
        ("mine.py:small", "did you mean 'mine:small'?"),
        ("nets.mine:", "package.module:function"),
        ("python:", "python:package.module.Class"),
    ],
)
def test_a_name_that_is_written_wrongly_is_refused_before_anything_is_imported(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match="model: name must be") as caught:
        build_experiment({"name": "x", "cohort": {"manifest": ""}, "model": {"name": name}})
    assert words in str(caught.value)


def test_a_function_that_the_user_has_not_named_never_runs(project: Path) -> None:
    section = ModelSection(name=NAME)
    for build in (
        lambda: build_network(section, num_channels=2, num_classes=3),
        lambda: sketch_section(section, name="source", channels=("a",), classes=("b", "c")),
    ):
        with pytest.raises(CheckpointError, match=r"'nets\.mine:small', which was not run: .* DMX_TRUSTED_FACTORIES="):
            build()
    assert not (project / "imported").exists()
    assert not (project / "called").exists()


@pytest.mark.parametrize(("pattern", "runs"), [("nets.mine:*", True), ("nets.mine:smal", False), ("", False)])
def test_the_environment_names_what_is_trusted(
    pattern: str, runs: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.VARIABLE, pattern)
    if runs:
        make()
    else:
        with pytest.raises(DmxError, match="was not run"):
            make()
    assert (project / "called").exists() is runs


def test_an_experiment_asks_for_consent(project: Path) -> None:
    """A file is written by anybody: reading it names nothing that may be called; '--trust' does."""
    (project / "mine.yaml").write_text(f"name: x\ncohort: {{manifest: cohort.csv}}\nmodel: {{name: {NAME}}}\n")
    given = load_experiment(project / "mine.yaml")
    with pytest.raises(CheckpointError, match=rf"was not run: an experiment, .*--trust {NAME}"):
        build_network(given.model, num_channels=2, num_classes=3)
    assert not (project / "imported").exists()
    trust.trust_factory(NAME)
    build_network(given.model, num_channels=2, num_classes=3)
    with pytest.raises(CheckpointError, match="was not run"):
        make("nets.mine:by_classes")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "os:system",
            "builtins:exec",
            "subprocess:Popen",
            "importlib:import_module",
            "posix:system",
            "runpy:run_path",
        ),
        *("pty:spawn", "shutil:rmtree", "sys:exit", "ctypes:CDLL", "pickle:loads", "code:interact", "os.path:join"),
        *(
            "torch.hub:load",
            "torch:load",
            "torch.utils.cpp_extension:load",
            "torch.jit:load",
            "numpy:load",
            "nt:system",
        ),
        *("monai.bundle:load", "mlflow.pyfunc:load_model", "joblib:load", "pip:main", "dmx.api.models:load_model"),
        *("nets.again:system", "nets.again:fetch", "nets.again:partial", "nets.again:method", "nets.again:wrapped"),
    ],
)
def test_what_runs_programs_or_fetches_code_is_never_a_factory(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "nets/again.py").write_text(
        "import functools, pathlib, subprocess\nfrom os import system\nfrom torch.hub import load as fetch\n"
        "partial = functools.partial(functools.partial(subprocess.run), shell=True)\n"
        "method = pathlib.Path('made').touch\n"
        "@functools.wraps(fetch)\ndef wrapped(*args, **words): raise AssertionError\n"
    )
    monkeypatch.setenv(trust.VARIABLE, "*")
    with pytest.raises(ModelError, match="nothing of them is called"):
        make(name)
    assert not (project / "made").exists()


@pytest.mark.usefixtures("trusted")
def test_a_module_that_is_called_like_a_library_does_not_take_its_place(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("colorsys", "einops"):
        (project / f"{name}.py").write_text(f"open({str(project / 'ran')!r}, 'w')\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    (project / "nets/imports.py").write_text(f"import colorsys\n{SOURCE}")
    make("nets.imports:small")
    monkeypatch.setenv(trust.VARIABLE, "*")
    with pytest.raises(ModelError, match=r"has no 'small'|needs a package"):
        make("einops:small")
    assert not (project / "ran").exists()


def test_a_module_made_in_python_has_to_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.VARIABLE, "*")
    with pytest.raises(CheckpointError, match=r"\(lab\.nets\.Net\).*load_model\(run, into=model\)"):
        make("python:lab.nets.Net")
