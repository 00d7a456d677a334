"""The code in a model's folder: the files that a class needs which import one another and nothing else of ours."""

import ast
import py_compile
import re
import sys

import pytest

from ulmfit_pipe.storage.model_code import HEADER, code_of, is_copied_code, save_code

HEADS = {"classifier_heads.py", "document_windows.py", "quiet_transformers.py", "model_code.py"}
FILES = {
    "ulmfit_pipe.models.awd_lstm.modeling_awd_lstm": {
        *HEADS,
        "modeling_awd_lstm.py",
        "configuration_awd_lstm.py",
        "dropout.py",
    },
    "ulmfit_pipe.models.heads.pooling_classifier": {*HEADS, "pooling_classifier.py"},
    "ulmfit_pipe.models.images.classifier": {*HEADS, "classifier.py", "backbones.py"} - {"document_windows.py"},
    "ulmfit_pipe.data.text.ulmfit_tokenizer": {
        "ulmfit_tokenizer.py",
        "english_words.py",
        "remembered_words.py",
        "text_rules.py",
        "model_code.py",
    },
}
ALLOWED = {"torch", "transformers", "huggingface_hub", "tokenizers", "numpy"}  # beside the standard library


@pytest.mark.parametrize("module", FILES)
def test_a_module_brings_the_files_that_it_needs_and_they_import_nothing_else_of_the_package(module):
    code = code_of(module)
    assert code.keys() == FILES[module]
    for name, text in code.items():
        assert text.startswith(HEADER) and not re.search(r"/(home|tmp|root|work|usr|mnt)\b", text), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, f"{node.module}.py" in code) == (1, True), (name, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                given = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {str(part).split(".")[0] for part in given} <= ALLOWED | set(sys.stdlib_module_names), name


def test_the_files_are_the_same_every_time_and_are_told_from_others(tmp_path):
    module = "ulmfit_pipe.data.text.ulmfit_tokenizer"
    paths = save_code(tmp_path, module)
    assert paths == [str(tmp_path / name) for name in sorted(FILES[module])]
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_code(tmp_path, module)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert all(is_copied_code(path) for path in tmp_path.iterdir())
    (tmp_path / "theirs.py").write_bytes(b"\xff\xfe" + HEADER.encode())
    assert not is_copied_code(tmp_path / "theirs.py")


def test_a_program_without_sources_saves_models_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "given.py").write_text("x = 1\n")
    py_compile.compile(str(tmp_path / "given.py"), cfile=str(tmp_path / "sourceless.pyc"))
    monkeypatch.syspath_prepend(tmp_path)
    assert code_of("sourceless") == {}
    assert save_code(tmp_path, "sourceless") == []
