"""How sentence-transformers' folders say that a text is read."""

import json

import pytest

from ulmfit_pipe.models.sentence_encoders import SentenceEncoder, SentenceEncoderError, read_sentence_encoder

MODULES = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]


def write(folder, *, modules=MODULES, pooling=None, sentence=None, prompts=None):
    """Write the files that sentence-transformers writes beside a model."""
    listed = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in modules
    ]
    (folder / "1_Pooling").mkdir()
    files = {
        "modules.json": listed,
        "1_Pooling/config.json": pooling or {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": sentence,
        "config_sentence_transformers.json": prompts,
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def read(folder):
    def find(name):
        return folder / name if (folder / name).is_file() else None

    return read_sentence_encoder(find)


def test_a_folder_without_modules_is_no_sentence_encoder(tmp_path):
    assert read(tmp_path) is None


def test_pooling_normalization_length_prompt_and_case_are_read(tmp_path):
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
    found = read(write(tmp_path, sentence={"max_seq_length": 256, "do_lower_case": True}, prompts=prompts))
    assert found == SentenceEncoder("mean", normalize=True, max_length=256, prompt="query: ", lowercase=True)
    assert found.describe() == "mean of its tokens, normalized, texts up to 256 tokens, with the prompt 'query: '"


def test_a_prompt_that_is_no_default_is_not_used(tmp_path):
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    found = read(write(tmp_path, modules=MODULES[:2], prompts=prompts))
    assert found == SentenceEncoder("mean", normalize=False)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"embedding_dimension": 16, "pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_old_flags_and_new_names_of_poolings_are_known(tmp_path, config, pooling):
    assert read(write(tmp_path, pooling=config)).pooling == pooling


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"modules": [*MODULES, ("3", "3_Dense", "Dense")]},
            "names the modules Transformer, Pooling, Normalize, Dense",
        ),
        ({"modules": [MODULES[0]]}, "names the modules Transformer"),
        (
            {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}},
            "mean_tokens and max_tokens",
        ),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "it pools by weightedmean"),
        ({"pooling": {"word_embedding_dimension": 16}}, "it pools by nothing named"),
        ({"sentence": [1]}, "sentence_bert_config.json does not hold a dict"),
    ],
)
def test_what_a_classifier_here_does_not_have_is_refused(tmp_path, changes, words):
    with pytest.raises(SentenceEncoderError, match=words):
        read(write(tmp_path, **changes))


def test_a_file_that_is_not_json_is_refused(tmp_path):
    folder = write(tmp_path)
    (folder / "modules.json").write_text("[{")
    with pytest.raises(SentenceEncoderError, match=r"modules.json cannot be read \(JSONDecodeError\)"):
        read(folder)
