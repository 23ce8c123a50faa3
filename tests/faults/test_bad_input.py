"""Bad input ends with exit code 2 and one sentence that names file and field, and leaves nothing behind."""

import pytest

from tests.faults.bad_manifest import bad_manifests
from tests.faults.bad_nifti import bad_scans
from tests.faults.bad_settings import bad_settings
from tests.faults.bad_words import bad_words
from tests.faults.world import Bad, World, problems

ALL = [*bad_scans(), *bad_manifests(), *bad_settings(), *bad_words()]
_EVERY = 3


def _named(bad: list[Bad]) -> list[object]:
    return [pytest.param(one, id=one.name.replace("/", "_")) for one in bad]


@pytest.mark.parametrize("bad", _named(ALL[::_EVERY]))
def test_bad_input_is_refused_in_one_sentence(world: World, bad: Bad) -> None:
    assert not problems(world, bad)


@pytest.mark.slow
@pytest.mark.parametrize("bad", _named([bad for index, bad in enumerate(ALL) if index % _EVERY]))
def test_more_bad_input_is_refused_in_one_sentence(world: World, bad: Bad) -> None:
    assert not problems(world, bad)
