"""What holds for every test: no network, no screen, few threads, nothing written outside temporary folders."""

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHE = tempfile.TemporaryDirectory(prefix="ulmfit_pipe_tests_")

# Set before transformers, datasets, torch or matplotlib are imported: they read these names at import.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": CACHE.name,
    "HF_DATASETS_CACHE": str(Path(CACHE.name, "datasets")),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "XDG_CACHE_HOME": CACHE.name,
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": str(Path(CACHE.name, "matplotlib")),
    "TOKENIZERS_PARALLELISM": "false",
}
# Two test processes share two cores; the tensors of the tests are too small to gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files that take longest, the longest first: with several test processes none of these is begun last.
LONGEST = [
    "recipes/test_recipes.py",
    "text/test_pipeline.py",
    "stages/test_stages_several_processes.py",
    "text/predict/test_files.py",
    "studies/test_low_shot.py",
    "recipes/test_resumed_recipes.py",
    "stages/test_launches.py",
    "text/families/test_transformer_classifier.py",
    "studies/transferability/test_study.py",
    "text/families/test_transformer_pipeline.py",
    "text/families/test_transformer_language_model.py",
    "training/distributed/test_several_processes.py",
    "text/test_bad_input.py",
    "images/test_pipeline.py",
    "training/resume/test_resume.py",
    "text/test_classifier.py",
    "training/distributed/test_sharding.py",
    "studies/test_demo.py",
    "tools/inspection/test_show_filters.py",
]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order below: pytest-xdist would begin with the files that have the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; nothing else changes its place."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(tests).as_posix()
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the caches of the libraries."""
    CACHE.cleanup()


@pytest.fixture(scope="session", autouse=True)
def cheap_garbage_collection() -> Iterator[None]:
    """Keep the libraries' own objects out of every garbage collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def quick_ends_of_phases() -> Iterator[None]:
    """Leave out accelerate's garbage collection after every phase, which takes longer than toys train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_options: None)
        yield


@pytest.fixture
def fresh_accelerator():
    """Forget the precision of this process' accelerators before and after."""
    from accelerate.state import AcceleratorState  # not above, for the same reason as torch below

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def cost_ratio():
    """Return a function that tells how many times the processor time of one piece of work another one takes.

    The least of several runs each, so that what else the machine does counts little; tests compare it with a bound far
    from both a right and a wrong growth.
    """

    def seconds(work):
        times = []
        for _ in range(3):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        return min(times)

    return lambda small, large: seconds(large) / seconds(small)


@contextlib.contextmanager
def _dots_for_pictures() -> Iterator[None]:
    from matplotlib.figure import Figure  # not above: it reads its settings from the names above
    from PIL import Image

    def save(_figure, target, *, format):
        Image.new("L", (1, 1)).save(target, format=format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Save a dot for every picture: to draw those of a report takes longer than to train what it reports on.

    They are drawn as users get them by the tests of reports, by recipes/test_recipes.py, stages/test_report.py and
    tools/inspection/test_show_filters.py.
    """
    with _dots_for_pictures():
        yield


@pytest.fixture
def blank_pictures_here() -> Iterator[None]:
    """Save dots for the pictures of one test, whose kinds another test of the file draws."""
    with _dots_for_pictures():
        yield


@pytest.fixture
def every_warning():
    """Let torch warn each time: an earlier test may have had the only one."""
    import torch  # not above: most tests of settings and layering need none

    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)
