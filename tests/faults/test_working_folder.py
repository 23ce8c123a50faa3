"""Modules beside the cohort: whatever they are called, dmx imports none of them."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    *(
        "signal",
        "socketserver",
        "random",
        "typing",
        "contextlib",
        "concurrent",
        "socket",
        "pickle",
        "struct",
        "secrets",
    ),
    *("selectors", "tempfile", "numpy", "torch", "scipy", "nibabel", "yaml", "mlflow", "uvicorn", "rich", "typer"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which each module writes that it ran."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\nraise SystemExit(3)\n"
        )
    yield tmp_path
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def run(folder: Path, *words: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


POOL = """
import os, pathlib
from dmx.__main__ import leave_working_folder
if __name__ == "__main__":
    from dmx.children import workers
    with workers(1) as pool:
        print(*pool.submit(eval, "__import__('sys').path + [__import__('signal').__file__]").result(), sep="\\n")
    print(os.environ.get("PYTHONSAFEPATH"))
"""


def test_processes_that_prepare_cases_import_nothing_from_there(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = tmp_path_factory.mktemp("aside") / "work.py"
    script.write_text(POOL)
    *paths, after = run(folder, "-P", str(script)).splitlines()
    assert str(folder) not in paths
    assert after == "None", "the environment of the process itself stays as it is"


def test_the_command_as_a_module_imports_nothing_from_there(folder: Path) -> None:
    # Python imports it itself for -m, before anything of dmx.
    (folder / "contextlib.py").unlink()
    assert run(folder, "-m", "dmx", "--version").startswith("dmx ")
    assert "epochs" in run(folder, "-m", "dmx", "config", "schema")


SERVE = """
from urllib.request import urlopen
from dmx.tracking.ui import free_port, serving
import sys
with serving(sys.argv[1], free_port(5700)) as base:
    print(urlopen(base + "/health").read().decode())
    print(urlopen(base + "/ajax-api/2.0/mlflow/experiments/search?max_results=5").status)
"""


def test_the_pages_import_nothing_from_there(folder: Path) -> None:
    (folder / "mlruns").mkdir()
    said = run(folder, "-P", "-c", SERVE, f"sqlite:///{folder}/mlruns/mlflow.db")
    assert said.split() == ["OK", "200"]


def test_every_process_is_started_by_the_safe_way() -> None:
    """A new way to start one has to be thought about here."""
    starts = {"Popen", "run", "check_output", "check_call", "system", "ProcessPoolExecutor", "Pool", "get_context"}
    found = set()
    for path in (ROOT / "dmx").rglob("*.py"):
        text = path.read_text()
        if "subprocess" not in text and "multiprocessing" not in text and "os.system" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name in starts and name != "run":
                    found.add(path.relative_to(ROOT / "dmx").as_posix())
    assert found == {"children.py", "tracking/ui.py", "training/processes.py"}
    for name in found - {"children.py"}:
        assert "variables(" in (ROOT / "dmx" / name).read_text()


_WITHOUT_POSIX = """
import sys
sys.modules["fcntl"] = None
import signal
del signal.SIGHUP
import dmx.tracking.session, dmx.workflows.train, dmx.workflows.resume, dmx.cli.main
from dmx.errors import RunError
from dmx.paths import lock
try:
    lock(sys.stdin, wait=False)
except RunError as error:
    print(error)
"""


def test_without_posix_locks_there_is_a_sentence(tmp_path: Path) -> None:
    assert "Linux and macOS only" in run(tmp_path, "-P", "-c", _WITHOUT_POSIX)
