import pkgutil
import subprocess
import sys

import pytest

import dmx


def run(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run("import sys, dmx; dir(dmx); print(*{name.split('.')[0] for name in sys.modules})")
    assert "dmx" in loaded
    assert not {"torch", "mlflow", "numpy", "pydantic", "yaml", "nibabel"} & set(loaded)


def test_no_function_has_the_name_of_a_part_of_the_package() -> None:
    parts = {module.name for module in pkgutil.iter_modules(dmx.__path__)}
    assert {"transfer", "training"} <= parts
    assert not parts & set(dmx.__all__)


def test_each_name_is_still_a_function_after_every_module_was_imported() -> None:
    code = (
        "import importlib, pkgutil, dmx\n"
        "for module in pkgutil.walk_packages(dmx.__path__, 'dmx.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print(*[name for name in dmx.__all__ if callable(getattr(dmx, name))])"
    )
    assert set(run(code)) == set(dmx.__all__) - {"__version__"}


def test_names_are_offered_and_others_refused() -> None:
    assert set(dmx.__all__) <= set(dir(dmx))
    assert issubclass(dmx.DmxError, Exception)
    assert dmx.freeze is dmx.freeze
    with pytest.raises(AttributeError, match="no attribute 'finetuen'"):
        dmx.finetuen  # noqa: B018
