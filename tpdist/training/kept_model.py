"""The models that a run keeps: that of its best epoch, and that of the last."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from tpdist.config import Experiment
from tpdist.data import Manifest
from tpdist.data.disk import sync
from tpdist.errors import RunError
from tpdist.models import LanguageModel, build_model
from tpdist.training.files import load_tensors, read_json, save_tensors, write_atomic, write_json
from tpdist.training.run_dir import RunDirectory


class KeptModel:
    """A run's `best` or `last` model: its parameters as .safetensors, and .json about them."""

    def __init__(self, run: RunDirectory, which: str):
        self._run, self._which = run, which
        self.file, self.about_file = run.models / f"{which}.safetensors", run.models / f"{which}.json"

    def save(self, model: LanguageModel, about: dict[str, Any]) -> None:
        """Both files; the JSON last, and gone before its tensors are, so that a whole pair is known by it."""

        def write(file: Path) -> None:
            # tied ones once: safetensors refuses shared memory
            save_tensors(dict(model.named_parameters()), file)
            sync(file)  # now, for this may take long, and until the end of `save` there is no whole pair
            self.about_file.unlink(missing_ok=True)

        write_atomic(self.file, write)
        write_json(self.about_file, about)

    def load(self, config: Experiment, corpus: Manifest) -> LanguageModel:
        """The model, on the CPU. Raises RunError if `corpus` is not the model's."""
        about = self._about()
        if about["corpus"] != corpus.checksum:
            raise RunError(
                f"{self._run.path}: its model was trained on another corpus than the store that the configuration "
                f"names now holds; prepare that corpus again"
            )
        model = build_model(config.model, config.run, about["types"])
        load_parameters(model, load_tensors(self.file), str(self.file))
        return model

    def damage(self, step: int | None = None) -> str | None:
        """What is wrong with the files, if anything. step: when they were saved."""
        try:
            saved = self._about().get("step")
            load_tensors(self.file)
        except RunError as error:
            return str(error)
        if step is not None and saved != step:
            return f"{self.about_file}: is of step {saved}, and the best until the checkpoint, of step {step}, is gone"
        return None

    def figures(self) -> dict[str, Any]:
        """What is known of the model: its epoch, perplexities; more where the run has ended."""
        kept = ("epoch", "valid_perplexity")
        about = self._about(kept)
        known = {name: about[name] for name in kept}
        if self._which == "best":
            with suppress(OSError, ValueError, KeyError, TypeError):  # none, or not ours
                result = read_json(self._run.result_file)
                known = (result if result["best_epoch"] == about["epoch"] else {}) | known  # else of fewer epochs
        return known

    def _about(self, needed: Sequence[str] = ("types", "corpus")) -> dict[str, Any]:
        """What `save` was told, with all that its reader has `needed`. Raises RunError where it is not whole."""
        file = self.about_file
        if not file.is_file():
            way_on = f"; go on with `{self._run.resume_command}`" if self._run.may_go_on() else ""
            raise RunError(f"{file}: missing; the run has not finished an epoch yet, or somebody removed it{way_on}")
        try:
            about: dict[str, Any] = read_json(file)
            _ = [about[name] for name in needed]
            return about
        except (OSError, ValueError, TypeError, KeyError) as error:
            other = "evaluate --model last, or " if self._which == "best" else ""
            raise RunError(
                f"{file}: not what tpdist wrote; {other}train an epoch more, which writes it again"
            ) from error


def load_parameters(model: LanguageModel, tensors: dict[str, Tensor], source: str) -> None:
    """Copy parameters in by name. Raises RunError, naming the first that does not fit."""
    for name, got, wanted in misfits(model, tensors):
        raise RunError(
            f"{source}: holds another model: parameter {name} is {got} there and {wanted} in the configuration; use "
            "the configuration that it was trained with"
        )
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])


def misfits(model: LanguageModel, tensors: dict[str, Tensor]) -> Iterator[tuple[str, object, object]]:
    """The names by which `tensors` and the model have other shapes, and both: `absent` for none."""
    own = dict(model.named_parameters())
    for name in sorted(own.keys() | tensors.keys()):
        got, wanted = (tuple(held[name].shape) if name in held else "absent" for held in (tensors, own))
        if got != wanted:
            yield name, got, wanted
