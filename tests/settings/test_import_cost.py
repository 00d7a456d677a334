"""Settings are read without the libraries that train, so that help and mistakes answer at once."""

import subprocess
import sys
from pathlib import Path

SETTINGS = Path(__file__).parents[2] / "ulmfit_pipe/settings"


def test_settings_import_neither_torch_nor_any_other_large_library():
    modules = [f"ulmfit_pipe.settings.{path.stem}" for path in sorted(SETTINGS.glob("*.py"))]
    heavy = ["torch", "transformers", "datasets", "accelerate", "numpy", "pandas", "sklearn"]
    code = f"import sys, {', '.join(modules)}; print(sorted({{*sys.modules}} & {{*{heavy}}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
