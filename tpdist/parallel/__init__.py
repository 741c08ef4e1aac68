"""Who owns which streams and blocks."""

from tpdist.parallel.place import Place, balanced

__all__ = ["Place", "balanced"]
