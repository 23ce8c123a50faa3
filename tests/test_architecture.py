"""The layers of docs/architecture.md, held against every import, lazy ones included."""

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "children": 0,
    "errors": 0,
    "geometry": 0,
    "paths": 1,
    "seeding": 0,
    "config": 1,
    "transfer": 2,
    "cohort": 3,
    "model": 3,
    "preprocess": 4,
    "sampling": 5,
    "evaluation": 6,
    "training": 6,
    "tracking": 7,
    "workflows": 8,
    "api": 9,
    "cli": 9,
}
THIRD_PARTY = {
    "children": set(),
    "errors": set(),
    "geometry": set(),
    "paths": set(),
    "seeding": {"torch"},
    "config": {"pydantic", "yaml"},
    "transfer": {"torch"},
    "cohort": {"nibabel", "numpy", "scipy", "nilearn", "matplotlib", "PIL"},
    "model": {"torch", "monai", "efficientnet_lite_pytorch", "dynamic_network_architectures"},
    "preprocess": {"numpy", "scipy"},
    "sampling": {"torch"},
    "evaluation": {"torch", "numpy", "scipy", "monai", "matplotlib", "h5py", "sklearn"},
    "training": {"torch", "safetensors", "monai"},
    "tracking": {"mlflow", "matplotlib", "psutil", "torch"},
    "workflows": {"torch", "numpy"},
    "api": {"torch"},
    "cli": {"typer", "rich", "click"},
}
ONLY_IN = {
    "PIL": {"dmx.cohort.image"},
    "nibabel": {"dmx.cohort.volume"},
    "mlflow": {"dmx.tracking.mlflow_store"},
    "pydantic": {"dmx.config.load"},
}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "dmx").rglob("*.py")}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in MODULES.items():
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
    return found


def layer_of(module: str) -> int:
    parts = module.split(".")
    return LAYERS.get(parts[1], 10) if len(parts) > 1 else 10


@pytest.mark.parametrize(("name", "tree"), [pytest.param(name, tree, id=name) for name, tree in trees()])
def test_a_module_imports_only_from_layers_below_and_its_own_libraries(name: str, tree: ast.Module) -> None:
    folder = name.split(".")[1] if "." in name else ""
    for target in imports(tree):
        top = target.split(".")[0]
        if top == "dmx":
            same = target.split(".")[1:2] == [folder]
            assert target == "dmx" or same or layer_of(target) < layer_of(name), f"{name} imports {target}"
        elif top not in sys.stdlib_module_names and folder:
            assert top in THIRD_PARTY.get(folder, set()), f"{name} imports {top}"
            assert name in ONLY_IN.get(top, {name}), f"{top} is imported by {ONLY_IN.get(top)} alone, not by {name}"


def test_no_import_cycle_lazy_ones_included() -> None:
    graph = {name: {target for target in imports(tree) if target in MODULES} - {name} for name, tree in trees()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {error.args[1]}")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_and_functions_stay_readable(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1
            assert length <= 50, f"{name}.{node.name} has {length} lines"
        if isinstance(node, ast.ClassDef):
            own = {t.attr for n in ast.walk(node) if isinstance(n, (ast.Assign, ast.AnnAssign)) for t in _targets(n)}
            assert len(own) <= 12, f"{name}.{node.name} has {len(own)} attributes"


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.Attribute]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [
        t for t in targets if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "self"
    ]


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


def test_the_command_starts_without_heavy_libraries() -> None:
    heavy = {"torch", "mlflow", "numpy", "nibabel", "monai", "matplotlib", "scipy", "pydantic", "yaml"}
    loaded = loaded_after(
        "import sys\nsys.argv = ['dmx', '--help']\nfrom dmx.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    )
    assert "typer" in loaded
    assert not loaded & heavy


def test_the_training_core_needs_torch_alone() -> None:
    loaded = loaded_after("import dmx.training.loop, dmx.sampling.sampler, dmx.model.build, dmx.training.checkpoint")
    assert "torch" in loaded
    assert not loaded & {"pydantic", "yaml", "nibabel", "mlflow", "monai", "safetensors", "typer"}


def test_the_project_names_no_private_place() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    if ROOT.parent in {Path("/"), Path(tempfile.gettempdir())}:
        pytest.skip(f"{ROOT.parent} is no private place: texts may name it")
    private = str(ROOT.parent) + "/"
    texts = [ROOT / name for name in files if Path(name).suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""}]
    assert not [path for path in texts if path.is_file() and private in path.read_text(errors="ignore")]
