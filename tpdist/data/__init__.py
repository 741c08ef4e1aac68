"""Text -> vocabulary -> Arrow store (IPC, memory-mapped) -> one worker's blocks. Imports neither torch nor ray."""

from tpdist.data.manifest import Manifest, Split
from tpdist.data.opening import is_missing, open_or_prepare
from tpdist.data.prepare import Progress, dry_run, prepare
from tpdist.data.recipes import default_store, missing_source
from tpdist.data.store import ArrayTokens, Store, Tokens
from tpdist.data.streams import StreamLayout, read_blocks
from tpdist.data.vocabulary import EOS, UNK, Vocabulary

__all__ = [
    "EOS",
    "UNK",
    "ArrayTokens",
    "Manifest",
    "Progress",
    "Split",
    "Store",
    "StreamLayout",
    "Tokens",
    "Vocabulary",
    "default_store",
    "dry_run",
    "is_missing",
    "missing_source",
    "open_or_prepare",
    "prepare",
    "read_blocks",
]
