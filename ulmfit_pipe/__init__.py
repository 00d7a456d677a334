"""The ULMFiT method on today's stack: language model, classifier, gradual unfreezing, in stages.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ulmfit_pipe.text.pipeline": ("TextPipeline", "run_pipeline"),
    "ulmfit_pipe.reports.result_table": ("metrics_table",),
    "ulmfit_pipe.text.jobs": ("find_learning_rate", "run_classifier", "run_language_model"),
    "ulmfit_pipe.text.predict.predictor": ("Predictor",),
    "ulmfit_pipe.text.predict.files": ("predict_file",),
    "ulmfit_pipe.settings.parsing": ("parse_settings",),
    "ulmfit_pipe.tools.fastai.import_fastai": ("import_fastai",),
    "ulmfit_pipe.tools.fastai.export_fastai": ("export_fastai",),
    "ulmfit_pipe.program": ("run_recipe",),
    "ulmfit_pipe.studies.demo": ("run_demo",),
    "ulmfit_pipe.text.classifier": ("build_classifier_learner", "train_classifier"),
    "ulmfit_pipe.text.language_model": ("build_language_model_learner", "train_language_model"),
    "ulmfit_pipe.text.language_model_scores": ("describe_perplexity",),
    "ulmfit_pipe.tools.packaging.package_model": ("package_language_model",),
    "ulmfit_pipe.studies.ablation": ("run_ablation",),
    "ulmfit_pipe.studies.low_shot": ("run_low_shot",),
    "ulmfit_pipe.studies.transferability.study": ("run_transferability",),
    "ulmfit_pipe.stages.saved_learner": ("groups_of", "load_learner"),
    "ulmfit_pipe.stages.context": ("RunContext",),
    "ulmfit_pipe.tools.inspection.show_filters": ("show_filters",),
    "ulmfit_pipe.tools.inspection.weight_comparison": ("compare_weights",),
    "ulmfit_pipe.images.classifier": ("build_image_learner", "train_image_classifier"),
    "ulmfit_pipe.images.pipeline": ("ImagePipeline", "run_image_pipeline", "thawing_table"),
    "ulmfit_pipe.images.predict": ("ImagePredictor",),
    "ulmfit_pipe.data.images.files": ("ImageError", "load_images"),
    "ulmfit_pipe.models.images.classifier": ("UlmfitForImageClassification", "UlmfitImageConfig"),
    "ulmfit_pipe.data.splits": ("split_train_validation",),
    "ulmfit_pipe.data.tables.tables": ("TableError", "load_table"),
    "ulmfit_pipe.models.builtin_models": ("builtin_models",),
    "ulmfit_pipe.models.awd_lstm.configuration_awd_lstm": ("AwdLstmConfig",),
    "ulmfit_pipe.models.awd_lstm.modeling_awd_lstm": (
        "AwdLstmForCausalLM",
        "AwdLstmForSequenceClassification",
        "AwdLstmModel",
    ),
    "ulmfit_pipe.models.heads.pooling_classifier": ("PoolingClassifierConfig", "PoolingForSequenceClassification"),
    "ulmfit_pipe.models.layer_groups.group_specs": ("layer_group_specs",),
    "ulmfit_pipe.training.logs.accelerate_trackers": ("AccelerateTrackers",),
    "ulmfit_pipe.storage.atomic": ("CheckpointError",),
    "ulmfit_pipe.training.logs.events": ("JsonlLog",),
    "ulmfit_pipe.training.layer_groups": ("freeze_to", "split_layer_groups"),
    "ulmfit_pipe.training.learner": ("Learner",),
    "ulmfit_pipe.training.objectives": ("ClassificationObjective", "SequenceObjective"),
    "ulmfit_pipe.training.phases": (
        "chain_thaw",
        "full",
        "gradual_unfreezing",
        "head_only",
        "linear_probe_then_fine_tune",
    ),
    "ulmfit_pipe.training.resume.preemption": ("Preempted",),
    "ulmfit_pipe.training.records": ("Checkpoints", "Phase", "Task", "Tracker", "TrainingOptions"),
    "ulmfit_pipe.training.schedules": ("Schedule",),
    "ulmfit_pipe.training.logs.weight_changes": ("WeightChanges", "weight_changes"),
    "ulmfit_pipe.settings.images": (
        "AugmentationSettings",
        "ImageClassifierSettings",
        "ImageHeadSettings",
        "ImageSettings",
        "PretrainingSettings",
        "SmallResNetSettings",
    ),
    "ulmfit_pipe.settings.model_files": (
        "ConfigsSettings",
        "ExportFastaiSettings",
        "ImportFastaiSettings",
        "PackageSettings",
        "ShowFiltersSettings",
    ),
    "ulmfit_pipe.settings.prediction": ("PredictFileSettings",),
    "ulmfit_pipe.settings.studies": ("AblationSettings", "LowShotSettings", "TransferabilitySettings"),
    "ulmfit_pipe.settings.text": ("ClassifierSettings", "LanguageModelSettings"),
    "ulmfit_pipe.settings.text_runs": (
        "ClassifierJob",
        "DemoSettings",
        "LanguageModelJob",
        "LearningRateJob",
        "PipelineSettings",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605  # a list; built so that a name stands once


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ulmfit_pipe' has no attribute {name!r}; its public names are {__all__}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
