"""One Ray for all trials of a module, on this machine, with the cells that kill in the workers' path."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from trials import WORKERS, Chaos, Trial, experiment, run_trial

from tpdist.data import prepare
from tpdist.launch.auth import token_of_its_own


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    import ray

    import tpdist.launch.cluster  # noqa: F401 (what Ray must find in the environment)

    directory = tmp_path_factory.mktemp("chaos")
    (directory / "home").mkdir()
    # Ray may still write there at the end
    short_lived = tempfile.TemporaryDirectory(prefix="tp", dir="/tmp", ignore_cleanup_errors=True)
    with pytest.MonkeyPatch.context() as patch, short_lived as short, token_of_its_own():
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("TPDIST_CHAOS", str(directory / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_TMPDIR", short)
        ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        try:
            found = Chaos(directory / "home", directory / "store", directory / "reference")
            prepare(experiment(found.store).data, found.store)
            run_trial(Trial(None), found.home, found.store, found.reference)
            yield found
        finally:
            ray.shutdown()
