"""Who owns which streams and blocks; what workers tell each other."""

from tpdist.parallel.mesh import Workers
from tpdist.parallel.place import Place, balanced
from tpdist.parallel.traffic import Traffic

__all__ = ["Place", "Traffic", "Workers", "balanced"]
