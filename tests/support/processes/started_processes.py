"""Several processes of a script, started as a user starts them."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def start(script: Path, *arguments: object, processes: int, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes as a user would, and return how it ended."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        out, err = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        running.terminate()  # the launcher ends the processes that it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, running.returncode, out, err)
