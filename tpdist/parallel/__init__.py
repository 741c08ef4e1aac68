"""Who owns which streams and blocks; what workers tell each other."""

from tpdist.parallel.exchange import TimeNeighbours, Traffic
from tpdist.parallel.mesh import Workers
from tpdist.parallel.place import Place, balanced

__all__ = ["Place", "TimeNeighbours", "Traffic", "Workers", "balanced"]
