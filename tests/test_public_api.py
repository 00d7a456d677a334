"""The public names are a list; adding to it, or taking from it, is a decision."""

import subprocess
import sys

import ulmfit_pipe

PUBLIC_NAMES = [
    "AccelerateTrackers",
    "AblationSettings",
    "AugmentationSettings",
    "AwdLstmConfig",
    "AwdLstmForCausalLM",
    "AwdLstmForSequenceClassification",
    "AwdLstmModel",
    "CheckpointError",
    "Checkpoints",
    "ClassificationObjective",
    "ClassifierJob",
    "ClassifierSettings",
    "ConfigsSettings",
    "DemoSettings",
    "ExportFastaiSettings",
    "ImageClassifierSettings",
    "ImageError",
    "ImageHeadSettings",
    "ImagePipeline",
    "ImagePredictor",
    "ImageSettings",
    "ImportFastaiSettings",
    "LanguageModelJob",
    "LanguageModelSettings",
    "JsonlLog",
    "Learner",
    "LearningRateJob",
    "LowShotSettings",
    "PackageSettings",
    "Phase",
    "PipelineSettings",
    "PoolingClassifierConfig",
    "PoolingForSequenceClassification",
    "PredictFileSettings",
    "Predictor",
    "Preempted",
    "PretrainingSettings",
    "RunContext",
    "Schedule",
    "SequenceObjective",
    "ShowFiltersSettings",
    "SmallResNetSettings",
    "TableError",
    "Task",
    "TextPipeline",
    "Tracker",
    "TrainingOptions",
    "TransferabilitySettings",
    "UlmfitForImageClassification",
    "UlmfitImageConfig",
    "WeightChanges",
    "build_classifier_learner",
    "build_image_learner",
    "build_language_model_learner",
    "builtin_models",
    "chain_thaw",
    "compare_weights",
    "describe_perplexity",
    "export_fastai",
    "find_learning_rate",
    "freeze_to",
    "full",
    "gradual_unfreezing",
    "groups_of",
    "head_only",
    "import_fastai",
    "layer_group_specs",
    "linear_probe_then_fine_tune",
    "load_images",
    "load_learner",
    "load_table",
    "metrics_table",
    "package_language_model",
    "parse_settings",
    "predict_file",
    "run_ablation",
    "run_classifier",
    "run_demo",
    "run_image_pipeline",
    "run_language_model",
    "run_low_shot",
    "run_pipeline",
    "run_recipe",
    "show_filters",
    "run_transferability",
    "split_layer_groups",
    "split_train_validation",
    "thawing_table",
    "train_classifier",
    "train_image_classifier",
    "train_language_model",
    "weight_changes",
]


def test_the_public_names_are_exactly_these():
    assert sorted(getattr(ulmfit_pipe, "__all__", [])) == sorted(PUBLIC_NAMES)


def test_every_public_name_can_be_imported_and_says_what_it_is():
    for name in PUBLIC_NAMES:
        assert getattr(ulmfit_pipe, name).__doc__, name


def test_dir_lists_the_public_names():
    assert set(PUBLIC_NAMES) <= set(dir(ulmfit_pipe))


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, ulmfit_pipe; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
