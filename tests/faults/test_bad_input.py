"""Bad input ends with exit code 2 and one sentence that names file and field, and leaves nothing behind.

A seventh of the list runs with ``make test``, the rest with ``make test-all``.
"""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.bad_manifest import bad_manifests
from tests.faults.bad_nifti import HEADERS, WHOLE, bad_scans, plain
from tests.faults.bad_settings import bad_settings
from tests.faults.bad_words import bad_words
from tests.faults.world import Bad, World, problems

ALL = [*bad_scans(), *bad_manifests(), *bad_settings(), *bad_words()]
_EVERY = 7
_MEMORY = 1_500_000_000
_READ = """
import resource, sys
from dmx.cohort.volume import read_volume
from dmx.errors import CohortError
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        read_volume(path)
    except CohortError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _named(bad: list[Bad]) -> list[object]:
    return [pytest.param(one, id=one.name.replace("/", "_")) for one in bad]


@pytest.mark.parametrize("bad", _named(ALL[::_EVERY]))
def test_bad_input_is_refused_in_one_sentence(world: World, bad: Bad) -> None:
    assert not problems(world, bad)


@pytest.mark.slow
@pytest.mark.parametrize("bad", _named([bad for index, bad in enumerate(ALL) if index % _EVERY]))
def test_more_bad_input_is_refused_in_one_sentence(world: World, bad: Bad) -> None:
    assert not problems(world, bad)


def test_the_list_is_long_and_sound_input_is_not_refused(world: World, here: Path) -> None:
    assert len(ALL) >= 600
    path = world.cohort_with(here, "channel_t1", str(world.scan(here / "sound.nii.gz")))
    done = world.call("cohort", "check", path)
    assert done.code == 0, done.out + done.err
    assert "0 errors" in done.out


def test_a_header_that_promises_everything_costs_no_memory(world: World, here: Path) -> None:
    paths = []
    for number, change in enumerate((*HEADERS.values(), *WHOLE.values())):
        for ending in ("nii", "nii.gz"):
            paths.append(here / f"{number}.{ending}")
            data = change(plain(world))
            paths[-1].write_bytes(data if ending == "nii" else gzip.compress(data))
    command = [sys.executable, "-c", _READ, str(_MEMORY), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000


@pytest.mark.parametrize(
    ("words", "part"),
    [(("cohort", "check", "no\x1b[31m.csv"), "there is no such file"), (("config", "show", "x.yaml"), "twice")],
)
def test_a_process_ends_with_2_and_one_line(here: Path, words: tuple[str, ...], part: str) -> None:
    (here / "x.yaml").write_text("a: 1\na: 2\n")
    command = [sys.executable, "-m", "dmx", *words]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert part in done.stderr
    assert "\x1b" not in done.stderr
