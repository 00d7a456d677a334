"""The small models that the tests below start from."""

from tests.support.tiny_models import (  # noqa: F401
    builtin,
    quick_training,
    save_tiny_classifier,
    tiny_classifier_folder,
    tiny_language_model_folder,
    tiny_multi_label_folder,
    tiny_tokenizer,
)
