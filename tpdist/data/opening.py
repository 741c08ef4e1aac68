"""The store of a configuration: open it, or make it first."""

from pathlib import Path

from tpdist.config import Data
from tpdist.data import recipes
from tpdist.data.manifest import MANIFEST_FILE, Split
from tpdist.data.prepare import Report, prepare
from tpdist.data.store import Store, sha256_of
from tpdist.errors import DataError


def open_or_prepare(data: Data, progress: Report | None = None) -> Store:
    """The verified store of a configuration; made first if it is missing and the configuration says from what.

    An existing store is read through once (SHA-256), so damage is found before a run and not in it. Workers then
    use `Store.open`, which reads nothing.

    Raises DataError: no store and no text (with the command to run), a damaged store, a store made otherwise.
    """
    directory = recipes.default_store(data)
    if is_missing(data):
        try:
            return prepare(data, directory, progress)
        except DataError:
            if not (directory / MANIFEST_FILE).exists():
                raise  # else another process has made it in the meantime
    store = Store.open(directory)
    check_options(store, data)
    store.verify()
    return store


def is_missing(data: Data) -> bool:
    """Whether the store has to be made first. Raises DataError where the configuration does not say from what."""
    directory = recipes.default_store(data)
    try:
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            return False
    except OSError as error:  # a name that is too long, or a directory that cannot be read
        raise DataError(f"{directory}: cannot be read: {error.strerror}; give data.store another directory") from error
    if missing := recipes.missing_source(data):
        raise DataError(
            f"{directory}: no such store; run `{recipes.prepare_command(data)}`, or give {missing} in the configuration"
        )
    return True


def check_options(store: Store, data: Data) -> None:
    """Raise DataError, naming the option and both values, unless the store was made as `data` says.

    Files that the configuration gives are compared by size, and then by SHA-256: of another file of that size, such as
    the same lines in another order, no date tells that it is not the one that was read.
    """
    made, recipe = store.manifest.options, store.manifest.recipe
    asked = recipes.store_options(data.model_copy(update={"recipe": recipe}))  # whose options are others
    pairs = [("recipe", recipe, data.recipe)]
    pairs += [(name, made.get(name), asked[name]) for name in asked if name in made or name not in ("column", "source")]
    other = [(name, has, wants) for name, has, wants in pairs if has != wants]
    if other:
        made_with = [f"data.{name} {_show(has)}, the configuration has {_show(wants)}" for name, has, wants in other]
        use = " ".join(f"data.{name}={_show(has)}" for name, has, _ in other)
        raise _other(store, f"made with {'; with '.join(made_with)}", use)
    if data.recipe in recipes.NO_FILES or recipes.missing_source(data):
        return
    try:
        files = recipes.source_files(data)
    except DataError:
        return  # the text is no longer there; the store is enough
    split_of: dict[Path, Split] = {path: split for split, path in files.items()}  # text8 has one file for all
    for path, split in split_of.items():
        was = store.manifest.sources[split]
        try:
            if not path.is_file():
                continue  # as above
            size = path.stat().st_size
            differs = size == was.bytes and was.sha256 is not None and sha256_of(path) != was.sha256
        except OSError:
            continue
        if size != was.bytes:
            raise _other(store, f"made from {was.name} of {was.bytes:,} bytes, {path} has {size:,}")
        if differs:
            raise _other(store, f"made from {was.name} as it was, {path} holds another text")


def _other(store: Store, what: str, use: str = "") -> DataError:
    """use: settings by which the store would do."""
    mend = f"set {use} to use it, or give" if use else "give"
    return DataError(f"{store.directory}: {what}; {mend} data.store another directory, or delete this one")


def _show(value: str | int | None) -> str:
    return "null" if value is None else str(value)
