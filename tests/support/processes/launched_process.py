"""A recipe that does nothing for minutes; a launcher starts it, and test_launches.py ends the launcher.

accelerate launch --cpu --num_processes 1 launched_process.py FOLDER
"""

import os
import sys
import time
from pathlib import Path

from ulmfit_pipe.program import run_recipe


def main() -> None:
    """Say which process this is, and go on as if it trained."""
    (Path(sys.argv[1]) / "process.tmp").write_text(str(os.getpid()))
    (Path(sys.argv[1]) / "process.tmp").rename(Path(sys.argv[1]) / "process")
    time.sleep(300)


if __name__ == "__main__":
    try:
        run_recipe(main)
    except SystemExit as end:
        (Path(sys.argv[1]) / "ended").write_text(str(end.code))
        raise
