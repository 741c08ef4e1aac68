"""g and f of Eq. 1-2: cells, output head, language model. Imports torch only."""

from tpdist.models.build import build_model, imported
from tpdist.models.cells import GRU, LSTM, MRNN, Cell, Elman
from tpdist.models.head import IGNORED, cross_entropy, token_losses
from tpdist.models.language_model import LanguageModel

__all__ = [
    "GRU",
    "IGNORED",
    "LSTM",
    "MRNN",
    "Cell",
    "Elman",
    "LanguageModel",
    "build_model",
    "cross_entropy",
    "imported",
    "token_losses",
]
