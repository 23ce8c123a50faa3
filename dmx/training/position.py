"""How far a training is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """What has been done.

    Attributes:
        epoch: Complete epochs, which is also the number, from 0, of the one that is running.
        step: Complete steps of the running epoch.
        global_step: Complete steps since the beginning.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0

    def after_step(self) -> "Position":
        """Return the position one step further in the same epoch."""
        return Position(self.epoch, self.step + 1, self.global_step + 1)

    def after_epoch(self) -> "Position":
        """Return the position at the beginning of the next epoch."""
        return Position(self.epoch + 1, 0, self.global_step)
