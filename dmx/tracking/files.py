"""Read the text files among a run's artifacts."""

from pathlib import Path
from tempfile import TemporaryDirectory

from dmx.errors import RunError
from dmx.paths import PlaceError, within
from dmx.tracking.store import RunReader


def read_text(store: RunReader, run_id: str, path: str) -> str | None:
    """Return a text artifact of a run; ``None`` where it has none or it cannot be reached."""
    local = store.local_artifacts(run_id)
    try:
        if local is not None:
            return within(local, path, what=f"Run {run_id[:8]}").read_text(encoding="utf-8")
        with TemporaryDirectory() as folder:
            return store.download(run_id, path, Path(folder)).read_text(encoding="utf-8")
    except PlaceError:
        raise
    except (OSError, RunError):
        return None
