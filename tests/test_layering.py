"""Imports go down only: recipes -> stages -> training | models | data, and reports beside them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE_FILES = sorted((ROOT / "ulmfit_pipe").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

SIBLINGS = {f"ulmfit_pipe.{name}" for name in ("training", "models", "data", "stages", "reports")}
# Folder -> what its files must not import, at the top or inside a function.
FORBIDDEN = {
    "training": SIBLINGS - {"ulmfit_pipe.training", "ulmfit_pipe.reports"}
    | {"transformers", "datasets", "tokenizers", "torchvision", "PIL", "recipes"},
    "models": SIBLINGS - {"ulmfit_pipe.models", "ulmfit_pipe.reports"} | {"datasets", "accelerate", "recipes"},
    "data": SIBLINGS - {"ulmfit_pipe.data", "ulmfit_pipe.reports"} | {"accelerate", "recipes"},
    "reports": SIBLINGS - {"ulmfit_pipe.reports"} | {"torch", "transformers", "datasets", "accelerate", "recipes"},
    "stages": {"recipes"},
}
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RESTRICTED_READER = ROOT / "ulmfit_pipe" / "models" / "safe_pickles.py"  # fastai's files are pickles


def imported_names(tree: ast.Module) -> set[str]:
    """Dotted names that a file imports, wherever in it; `from a.b import c` gives `a.b` and `a.b.c`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def imports_from(names: set[str], packages: set[str]) -> set[str]:
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=shown)
def test_a_file_imports_only_from_below(path):
    folder = path.relative_to(ROOT / "ulmfit_pipe").parts[0]
    names = imported_names(parse(path))
    assert not imports_from(names, FORBIDDEN.get(folder, {"recipes"}))
    assert not {name for name in names if name.startswith(".")}, "absolute imports only"


@pytest.mark.parametrize("path", sorted({*PACKAGE_FILES, *RECIPES} - {RESTRICTED_READER}), ids=shown)
def test_nothing_unpickles(path):
    tree = parse(path)
    assert not imports_from(imported_names(tree), UNPICKLING)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"torch.load", "pandas.read_pickle", "pd.read_pickle"}
    assert "torch.load" not in imported_names(tree)


def test_the_reader_of_fastais_files_unpickles_nothing_but_plain_data():
    tree = parse(RESTRICTED_READER)
    assert imports_from(imported_names(tree), UNPICKLING) == {"pickle"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loads = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "torch.load"]
    assert loads == ["torch.load(file, map_location='cpu', weights_only=True)"]
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {
        "pickle._Unpickler",
        "pickle._Unpickler.dispatch",
        "pickle.dump",
    }


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_a_recipe_imports_public_names_only_and_no_other_recipe(path):
    names = imported_names(parse(path))
    private = {name for name in imports_from(names, {"ulmfit_pipe"}) if any(p.startswith("_") for p in name.split("."))}
    assert not private
    assert not imports_from(names, {"recipes"} | {recipe.stem for recipe in RECIPES})


def test_a_model_is_wrapped_in_one_place_and_an_accelerator_made_in_one():
    places: dict[str, set[str]] = {r"accelerator\.prepare(_\w+)?": set(), "Accelerator": set()}
    for path in PACKAGE_FILES:
        calls = [ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
        for name, found in places.items():
            if any(re.fullmatch(rf"(.+\.)?{name}", call) for call in calls):
                found.add(shown(path))
    assert list(places.values()) == [{"ulmfit_pipe/training/wrapping.py"}, {"ulmfit_pipe/training/launch.py"}]


def test_the_check_sees_an_import_wherever_it_stands():
    tree = ast.parse("def f():\n    from ulmfit_pipe.data.tables import load_table\n    import torch.nn\n")
    names = imported_names(tree)
    assert imports_from(names, FORBIDDEN["training"]) == {
        "ulmfit_pipe.data.tables",
        "ulmfit_pipe.data.tables.load_table",
    }
    assert imports_from(names, FORBIDDEN["reports"]) >= {"torch.nn"}
    assert not imports_from({"torchmetrics"}, {"torch"})
    assert imports_from(imported_names(ast.parse("from ulmfit_pipe import data")), FORBIDDEN["training"])


LOADERS = {"from_pretrained", "get_image_processor_dict", "get_config_dict", "from_config"}


def loading_calls(tree: ast.Module) -> list[ast.Call]:
    """Calls of transformers' loaders, of what builds a network from a configuration as well: it may name code."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in LOADERS]


@pytest.mark.parametrize("path", sorted({*PACKAGE_FILES, *RECIPES}), ids=shown)
def test_transformers_loads_nothing_without_being_told_whether_code_may_run(path):
    calls = loading_calls(parse(path))
    told = [call for call in calls if "trust_remote_code" in {keyword.arg for keyword in call.keywords}]
    pretrained = [call for call in calls if ast.unparse(call.func).endswith(".from_pretrained")]
    if path.name == "pretrained_files.py":
        assert [ast.unparse(call.func) for call in pretrained] == ["kind.from_pretrained"]
    else:
        assert not pretrained, "load_pretrained is the one way to it"
    untold = {ast.unparse(call.func) for call in calls if call not in told}
    assert untold <= {"BitImageProcessorPil.get_image_processor_dict"}, "that reads a JSON file, after load_pretrained"
    references = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute) and node.attr in LOADERS]
    assert len(references) == len(calls), "a loader is called where it is named, not handed on"
