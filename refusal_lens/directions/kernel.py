"""How strongly to act at each layer.

Knows the shape of the weights. Does not know where the best layer is.

Tested in tests/experiments/test_interventions.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightKernel:
    """How strongly to act at each layer: a peak that falls off linearly to a floor.

    `position` and `distance` are in layers, `peak` and `floor` factors of the intervention.
    """

    peak: float
    position: int
    floor: float
    distance: int

    def weight(self, layer: int) -> float:
        """Return the factor at a layer: `peak` at `position`, `floor` from `distance` on.

        Example:
            >>> WeightKernel(peak=1.0, position=4, floor=0.0, distance=2).weight(5)
            0.5
        """
        away = abs(layer - self.position) / self.distance
        return self.floor + (self.peak - self.floor) * max(0.0, 1.0 - away)
