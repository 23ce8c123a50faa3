"""Range checks of settings: each raises ``ValueError`` with name, what is allowed and what was given."""

_LARGEST_SIZE = 4096


def at_least(name: str, value: float, lowest: float) -> None:
    """Require ``value >= lowest``."""
    if not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")


def positive(name: str, value: float) -> None:
    """Require ``value > 0``."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def size(name: str, value: int | tuple[int, int, int]) -> None:
    """Require a number of voxels, or one per axis, that a scan can have."""
    for voxels in (value,) if isinstance(value, int) else value:
        between(name, voxels, 1, _LARGEST_SIZE)


def between(name: str, value: float, lowest: float, highest: float) -> None:
    """Require ``lowest <= value <= highest``."""
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, got {value}")


def orientation(code: str) -> None:
    """Require ``native``, or one letter for each of right or left, anterior or posterior, superior or inferior."""
    pairs = [next((pair for pair in ("RL", "AP", "SI") if letter in pair), "") for letter in code]
    if code != "native" and sorted(pairs) != ["AP", "RL", "SI"]:
        raise ValueError(
            f"orientation must be 'native' or three letters, one each of R or L, A or P, S or I, such as RAS, "
            f"got '{code}'"
        )
