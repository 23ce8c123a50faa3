import pytest

from dmx.transfer.values import percent


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0%"), (0.5226, "52.3%"), (57_003_840 / 57_012_034, "99.9%"), (1.0, "100.0%")]
)
def test_only_the_whole_is_a_hundred_percent(share: float, text: str) -> None:
    assert percent(share) == text
