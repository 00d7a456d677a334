"""The public names are a list; adding to it, or taking from it, is a decision."""

import ast
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import ulmfit_pipe

ROOT = Path(__file__).parents[1]

PUBLIC_NAMES = [
    "AblationSettings",
    "AccelerateTrackers",
    "ArtifactError",
    "Augmentation",
    "AugmentationSettings",
    "AwdLstmCausalLMOutput",
    "AwdLstmConfig",
    "AwdLstmForCausalLM",
    "AwdLstmForSequenceClassification",
    "AwdLstmModel",
    "AwdLstmModelOutput",
    "AwdLstmSequenceClassifierOutput",
    "BackboneBatches",
    "Batches",
    "BlockLayout",
    "CheckDataSettings",
    "CheckpointError",
    "Checkpoints",
    "ClassificationInterpretation",
    "ClassificationMetric",
    "ClassificationObjective",
    "ClassifierBatches",
    "ClassifierJob",
    "ClassifierParts",
    "ClassifierSettings",
    "ConfigsSettings",
    "DemoSettings",
    "DisagreementError",
    "Dropouts",
    "EpochRecord",
    "EvaluateSettings",
    "ExplainSettings",
    "Explanation",
    "ExportFastaiSettings",
    "ExportSummary",
    "FileFacts",
    "Guide",
    "History",
    "ImageBatches",
    "ImageClassifierSettings",
    "ImageError",
    "ImageHeadSettings",
    "ImageParts",
    "ImagePipeline",
    "ImagePixels",
    "ImagePredictor",
    "ImageScan",
    "ImageSettings",
    "ImportFastaiSettings",
    "ImportSummary",
    "JsonlLog",
    "LRFinderResult",
    "LabelNext",
    "LabelNextSettings",
    "LanguageModelBatches",
    "LanguageModelJob",
    "LanguageModelMetric",
    "LanguageModelParts",
    "LanguageModelSettings",
    "LaunchError",
    "LayerGroup",
    "LayerGroupSpec",
    "Learner",
    "LearningCurve",
    "LearningRateJob",
    "LowShotSettings",
    "Metric",
    "MultiLabelMetric",
    "NonFiniteLossError",
    "Objective",
    "OutputError",
    "PackageSettings",
    "Phase",
    "Picture",
    "PipelineSettings",
    "Plan",
    "PoolingClassifierConfig",
    "PoolingForSequenceClassification",
    "PredictFileSettings",
    "PredictSummary",
    "Predictor",
    "Preempted",
    "Preset",
    "PretrainingSettings",
    "ProbeError",
    "Problem",
    "ProcessError",
    "PushError",
    "PushSettings",
    "Report",
    "ReportSettings",
    "ResolvedModel",
    "RowLimits",
    "RowToLabel",
    "RunContext",
    "Schedule",
    "ScoredRows",
    "SentenceEncoderError",
    "SequenceObjective",
    "ServeError",
    "ServeSettings",
    "SettingsError",
    "ShowFiltersSettings",
    "ShownFilters",
    "SmallResNetSettings",
    "SpecialTokens",
    "StageOptimizer",
    "StageResult",
    "StepRecord",
    "TableError",
    "TableReading",
    "Task",
    "TextPipeline",
    "TokenBlockBatches",
    "TokenMasking",
    "Tracker",
    "TrainingOptions",
    "TransferabilitySettings",
    "UlmfitError",
    "UlmfitForImageClassification",
    "UlmfitImageConfig",
    "UlmfitTokenizer",
    "UnsafePickleError",
    "UnsupportedAcceleratorError",
    "UpdateSettings",
    "WeightChange",
    "WeightChanges",
    "Windows",
    "build_app",
    "build_classifier_learner",
    "build_image_learner",
    "build_language_model_learner",
    "builtin_models",
    "chain_thaw",
    "check_data",
    "compare_weights",
    "describe_perplexity",
    "describe_problems",
    "evaluate_file",
    "evaluate_table",
    "explain",
    "explain_texts",
    "export_fastai",
    "find_learning_rate",
    "freeze_to",
    "full",
    "gradual_unfreezing",
    "groups_of",
    "head_only",
    "import_fastai",
    "label_next",
    "layer_group_specs",
    "linear_probe_then_fine_tune",
    "load_images",
    "load_learner",
    "load_table",
    "make_report",
    "metrics_table",
    "package_language_model",
    "parse_settings",
    "predict_file",
    "push",
    "run_ablation",
    "run_classifier",
    "run_demo",
    "run_image_pipeline",
    "run_language_model",
    "run_low_shot",
    "run_pipeline",
    "run_recipe",
    "run_transferability",
    "run_update",
    "serve",
    "show_filters",
    "split_layer_groups",
    "split_train_validation",
    "thawing_table",
    "train_classifier",
    "train_image_classifier",
    "train_language_model",
    "update_table",
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


def test_type_checkers_see_the_names_that_python_sees():
    tree = ast.parse(Path(ulmfit_pipe.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == ulmfit_pipe._HOME_OF


WRONG = {
    'TextPipeline().fitt("x")': '"TextPipeline" has no attribute "fitt"',
    "from ulmfit_pipe import TextPipelines": 'Module "ulmfit_pipe" has no attribute "TextPipelines"',
    "gradual_unfreezing(3, lr='fast')": 'Argument "lr" to "gradual_unfreezing" has incompatible type "str"',
}
RIGHT = "labels = [answer['label'] for answer in TextPipeline.load('folder').predict(['It works.'])]"


@pytest.mark.slow
def test_a_type_checker_finds_three_wrong_lines_and_takes_a_right_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from ulmfit_pipe import TextPipeline, gradual_unfreezing\n" + "\n".join([*WRONG, RIGHT]))
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n")
    # the project's own cache: all but the script has been checked by `make lint`, or is checked once
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", ROOT / ".mypy_cache", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[1] for line in errors] == ["2", "3", "4"]
    assert all(words in line for words, line in zip(WRONG.values(), errors, strict=True))


def walked(hint):
    """Return every class of the package that an annotation names."""
    found = {part for each in typing.get_args(hint) for part in walked(each)} if typing.get_args(hint) else set()
    found |= {part for each in hint for part in walked(each)} if isinstance(hint, list) else set()
    kind = typing.get_origin(hint) or hint
    ours = isinstance(kind, type) and kind.__module__.startswith("ulmfit_pipe")
    return found | ({kind} if ours else set())


def test_what_a_public_function_takes_and_returns_is_public():
    hidden = set()
    for name in PUBLIC_NAMES:
        public = getattr(ulmfit_pipe, name)
        members = [public]
        if isinstance(public, type):
            members = [public.__init__, *(value for key, value in vars(public).items() if not key.startswith("_"))]
        for member in members:
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if "ulmfit_pipe" in getattr(getattr(function, "__code__", None), "co_filename", ""):
                hints = typing.get_type_hints(function, localns={"Picture": ulmfit_pipe.Picture})
                hidden |= {
                    f"{kind.__name__} of {name}"
                    for hint in hints.values()
                    for kind in walked(hint)
                    if kind.__name__ not in PUBLIC_NAMES
                }
    assert not hidden


def test_every_public_error_is_one_of_the_packages():
    errors = [getattr(ulmfit_pipe, name) for name in PUBLIC_NAMES if name.endswith("Error")]
    assert len(errors) > 10
    assert all(issubclass(error, ulmfit_pipe.UlmfitError) for error in errors)
