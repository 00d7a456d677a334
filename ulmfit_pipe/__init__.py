"""The ULMFiT method on today's stack: language model, classifier, gradual unfreezing, in stages.

Names are loaded when they are first used, so that importing the package costs nothing. Type checkers and editors read
the imports below `TYPE_CHECKING`, Python the table after them.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ulmfit_pipe.data.images.augmentation import Augmentation as Augmentation
    from ulmfit_pipe.data.images.batches import ImageBatches as ImageBatches
    from ulmfit_pipe.data.images.batches import ImagePixels as ImagePixels
    from ulmfit_pipe.data.images.files import ImageError as ImageError
    from ulmfit_pipe.data.images.files import ImageScan as ImageScan
    from ulmfit_pipe.data.images.files import load_images as load_images
    from ulmfit_pipe.data.splits import split_train_validation as split_train_validation
    from ulmfit_pipe.data.streams.backbone_batches import BackboneBatches as BackboneBatches
    from ulmfit_pipe.data.streams.backbone_batches import Windows as Windows
    from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches as ClassifierBatches
    from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches as LanguageModelBatches
    from ulmfit_pipe.data.streams.masking import TokenMasking as TokenMasking
    from ulmfit_pipe.data.streams.token_blocks import BlockLayout as BlockLayout
    from ulmfit_pipe.data.streams.token_blocks import TokenBlockBatches as TokenBlockBatches
    from ulmfit_pipe.data.tables.row_sources import TableReading as TableReading
    from ulmfit_pipe.data.tables.tables import FileFacts as FileFacts
    from ulmfit_pipe.data.tables.tables import TableError as TableError
    from ulmfit_pipe.data.tables.tables import load_table as load_table
    from ulmfit_pipe.data.text.pretrained_tokenizers import SpecialTokens as SpecialTokens
    from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer as UlmfitTokenizer
    from ulmfit_pipe.errors import UlmfitError as UlmfitError
    from ulmfit_pipe.images.classifier import ImageParts as ImageParts
    from ulmfit_pipe.images.classifier import build_image_learner as build_image_learner
    from ulmfit_pipe.images.classifier import train_image_classifier as train_image_classifier
    from ulmfit_pipe.images.pipeline import ImagePipeline as ImagePipeline
    from ulmfit_pipe.images.pipeline import run_image_pipeline as run_image_pipeline
    from ulmfit_pipe.images.pipeline import thawing_table as thawing_table
    from ulmfit_pipe.images.predict import ImagePredictor as ImagePredictor
    from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig as AwdLstmConfig
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmCausalLMOutput as AwdLstmCausalLMOutput
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM as AwdLstmForCausalLM
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import (
        AwdLstmForSequenceClassification as AwdLstmForSequenceClassification,
    )
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmModel as AwdLstmModel
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmModelOutput as AwdLstmModelOutput
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import (
        AwdLstmSequenceClassifierOutput as AwdLstmSequenceClassifierOutput,
    )
    from ulmfit_pipe.models.builtin_models import builtin_models as builtin_models
    from ulmfit_pipe.models.heads.pooling_classifier import PoolingClassifierConfig as PoolingClassifierConfig
    from ulmfit_pipe.models.heads.pooling_classifier import (
        PoolingForSequenceClassification as PoolingForSequenceClassification,
    )
    from ulmfit_pipe.models.images.classifier import UlmfitForImageClassification as UlmfitForImageClassification
    from ulmfit_pipe.models.images.classifier import UlmfitImageConfig as UlmfitImageConfig
    from ulmfit_pipe.models.layer_groups.group_specs import layer_group_specs as layer_group_specs
    from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec as LayerGroupSpec
    from ulmfit_pipe.models.sentence_encoders import SentenceEncoderError as SentenceEncoderError
    from ulmfit_pipe.program import run_recipe as run_recipe
    from ulmfit_pipe.reports.plots import Picture as Picture
    from ulmfit_pipe.reports.result_table import metrics_table as metrics_table
    from ulmfit_pipe.reports.text_tables import Report as Report
    from ulmfit_pipe.settings.guides import Guide as Guide
    from ulmfit_pipe.settings.images import AugmentationSettings as AugmentationSettings
    from ulmfit_pipe.settings.images import ImageClassifierSettings as ImageClassifierSettings
    from ulmfit_pipe.settings.images import ImageHeadSettings as ImageHeadSettings
    from ulmfit_pipe.settings.images import ImageSettings as ImageSettings
    from ulmfit_pipe.settings.images import PretrainingSettings as PretrainingSettings
    from ulmfit_pipe.settings.images import SmallResNetSettings as SmallResNetSettings
    from ulmfit_pipe.settings.model_files import ConfigsSettings as ConfigsSettings
    from ulmfit_pipe.settings.model_files import ExportFastaiSettings as ExportFastaiSettings
    from ulmfit_pipe.settings.model_files import ImportFastaiSettings as ImportFastaiSettings
    from ulmfit_pipe.settings.model_files import PackageSettings as PackageSettings
    from ulmfit_pipe.settings.model_files import PushSettings as PushSettings
    from ulmfit_pipe.settings.model_files import ShowFiltersSettings as ShowFiltersSettings
    from ulmfit_pipe.settings.parsing import parse_settings as parse_settings
    from ulmfit_pipe.settings.prediction import EvaluateSettings as EvaluateSettings
    from ulmfit_pipe.settings.prediction import ExplainSettings as ExplainSettings
    from ulmfit_pipe.settings.prediction import LabelNextSettings as LabelNextSettings
    from ulmfit_pipe.settings.prediction import PredictFileSettings as PredictFileSettings
    from ulmfit_pipe.settings.prediction import ServeSettings as ServeSettings
    from ulmfit_pipe.settings.reports import ReportSettings as ReportSettings
    from ulmfit_pipe.settings.studies import AblationSettings as AblationSettings
    from ulmfit_pipe.settings.studies import LowShotSettings as LowShotSettings
    from ulmfit_pipe.settings.studies import TransferabilitySettings as TransferabilitySettings
    from ulmfit_pipe.settings.tables import CheckDataSettings as CheckDataSettings
    from ulmfit_pipe.settings.tables import RowLimits as RowLimits
    from ulmfit_pipe.settings.text import ClassifierSettings as ClassifierSettings
    from ulmfit_pipe.settings.text import LanguageModelSettings as LanguageModelSettings
    from ulmfit_pipe.settings.text_runs import ClassifierJob as ClassifierJob
    from ulmfit_pipe.settings.text_runs import DemoSettings as DemoSettings
    from ulmfit_pipe.settings.text_runs import LanguageModelJob as LanguageModelJob
    from ulmfit_pipe.settings.text_runs import LearningRateJob as LearningRateJob
    from ulmfit_pipe.settings.text_runs import PipelineSettings as PipelineSettings
    from ulmfit_pipe.settings.text_runs import UpdateSettings as UpdateSettings
    from ulmfit_pipe.settings.values import SettingsError as SettingsError
    from ulmfit_pipe.stages.context import RunContext as RunContext
    from ulmfit_pipe.stages.finished import StageResult as StageResult
    from ulmfit_pipe.stages.model_names import ArtifactError as ArtifactError
    from ulmfit_pipe.stages.model_names import ResolvedModel as ResolvedModel
    from ulmfit_pipe.stages.presets import Dropouts as Dropouts
    from ulmfit_pipe.stages.presets import Preset as Preset
    from ulmfit_pipe.stages.presets import StageOptimizer as StageOptimizer
    from ulmfit_pipe.stages.saved_learner import groups_of as groups_of
    from ulmfit_pipe.stages.saved_learner import load_learner as load_learner
    from ulmfit_pipe.storage.atomic import CheckpointError as CheckpointError
    from ulmfit_pipe.storage.atomic import OutputError as OutputError
    from ulmfit_pipe.studies.ablation import run_ablation as run_ablation
    from ulmfit_pipe.studies.demo import run_demo as run_demo
    from ulmfit_pipe.studies.low_shot import run_low_shot as run_low_shot
    from ulmfit_pipe.studies.transferability.study import run_transferability as run_transferability
    from ulmfit_pipe.text.classifier import ClassifierParts as ClassifierParts
    from ulmfit_pipe.text.classifier import build_classifier_learner as build_classifier_learner
    from ulmfit_pipe.text.classifier import train_classifier as train_classifier
    from ulmfit_pipe.text.head_probe import ProbeError as ProbeError
    from ulmfit_pipe.text.jobs import find_learning_rate as find_learning_rate
    from ulmfit_pipe.text.jobs import run_classifier as run_classifier
    from ulmfit_pipe.text.jobs import run_language_model as run_language_model
    from ulmfit_pipe.text.labelling.label_next import LabelNext as LabelNext
    from ulmfit_pipe.text.labelling.label_next import RowToLabel as RowToLabel
    from ulmfit_pipe.text.labelling.label_next import label_next as label_next
    from ulmfit_pipe.text.labelling.learning_curve import LearningCurve as LearningCurve
    from ulmfit_pipe.text.language_model import build_language_model_learner as build_language_model_learner
    from ulmfit_pipe.text.language_model import train_language_model as train_language_model
    from ulmfit_pipe.text.language_model_parts import LanguageModelParts as LanguageModelParts
    from ulmfit_pipe.text.language_model_scores import describe_perplexity as describe_perplexity
    from ulmfit_pipe.text.pipeline import TextPipeline as TextPipeline
    from ulmfit_pipe.text.pipeline import run_pipeline as run_pipeline
    from ulmfit_pipe.text.predict.evaluation import evaluate_file as evaluate_file
    from ulmfit_pipe.text.predict.evaluation import evaluate_table as evaluate_table
    from ulmfit_pipe.text.predict.explain import Explanation as Explanation
    from ulmfit_pipe.text.predict.explain import explain as explain
    from ulmfit_pipe.text.predict.explain import explain_texts as explain_texts
    from ulmfit_pipe.text.predict.explained_report import make_report as make_report
    from ulmfit_pipe.text.predict.files import PredictSummary as PredictSummary
    from ulmfit_pipe.text.predict.files import predict_file as predict_file
    from ulmfit_pipe.text.predict.predictor import Predictor as Predictor
    from ulmfit_pipe.text.predict.predictor import ScoredRows as ScoredRows
    from ulmfit_pipe.text.scores.interpretation import ClassificationInterpretation as ClassificationInterpretation
    from ulmfit_pipe.text.updating.update import run_update as run_update
    from ulmfit_pipe.text.updating.update import update_table as update_table
    from ulmfit_pipe.tools.fastai.export_fastai import ExportSummary as ExportSummary
    from ulmfit_pipe.tools.fastai.export_fastai import export_fastai as export_fastai
    from ulmfit_pipe.tools.fastai.import_fastai import ImportSummary as ImportSummary
    from ulmfit_pipe.tools.fastai.import_fastai import import_fastai as import_fastai
    from ulmfit_pipe.tools.fastai.safe_pickles import UnsafePickleError as UnsafePickleError
    from ulmfit_pipe.tools.inspection.show_filters import ShownFilters as ShownFilters
    from ulmfit_pipe.tools.inspection.show_filters import show_filters as show_filters
    from ulmfit_pipe.tools.inspection.weight_comparison import compare_weights as compare_weights
    from ulmfit_pipe.tools.packaging.package_model import package_language_model as package_language_model
    from ulmfit_pipe.tools.packaging.push import PushError as PushError
    from ulmfit_pipe.tools.packaging.push import push as push
    from ulmfit_pipe.tools.serving.server import ServeError as ServeError
    from ulmfit_pipe.tools.serving.server import build_app as build_app
    from ulmfit_pipe.tools.serving.server import serve as serve
    from ulmfit_pipe.tools.table_check.check_data import Problem as Problem
    from ulmfit_pipe.tools.table_check.check_data import check_data as check_data
    from ulmfit_pipe.tools.table_check.check_data import describe_problems as describe_problems
    from ulmfit_pipe.training.compute.accelerator_checks import (
        UnsupportedAcceleratorError as UnsupportedAcceleratorError,
    )
    from ulmfit_pipe.training.distributed.agreement import DisagreementError as DisagreementError
    from ulmfit_pipe.training.distributed.launch import LaunchError as LaunchError
    from ulmfit_pipe.training.distributed.processes import ProcessError as ProcessError
    from ulmfit_pipe.training.history import History as History
    from ulmfit_pipe.training.layer_groups import LayerGroup as LayerGroup
    from ulmfit_pipe.training.layer_groups import freeze_to as freeze_to
    from ulmfit_pipe.training.layer_groups import split_layer_groups as split_layer_groups
    from ulmfit_pipe.training.learner import Learner as Learner
    from ulmfit_pipe.training.logs.accelerate_trackers import AccelerateTrackers as AccelerateTrackers
    from ulmfit_pipe.training.logs.events import JsonlLog as JsonlLog
    from ulmfit_pipe.training.logs.weight_changes import WeightChange as WeightChange
    from ulmfit_pipe.training.logs.weight_changes import WeightChanges as WeightChanges
    from ulmfit_pipe.training.logs.weight_changes import weight_changes as weight_changes
    from ulmfit_pipe.training.loop import NonFiniteLossError as NonFiniteLossError
    from ulmfit_pipe.training.lr_finder import LRFinderResult as LRFinderResult
    from ulmfit_pipe.training.metrics import ClassificationMetric as ClassificationMetric
    from ulmfit_pipe.training.metrics import LanguageModelMetric as LanguageModelMetric
    from ulmfit_pipe.training.metrics import MultiLabelMetric as MultiLabelMetric
    from ulmfit_pipe.training.objectives import ClassificationObjective as ClassificationObjective
    from ulmfit_pipe.training.objectives import Objective as Objective
    from ulmfit_pipe.training.objectives import SequenceObjective as SequenceObjective
    from ulmfit_pipe.training.phases import Plan as Plan
    from ulmfit_pipe.training.phases import chain_thaw as chain_thaw
    from ulmfit_pipe.training.phases import full as full
    from ulmfit_pipe.training.phases import gradual_unfreezing as gradual_unfreezing
    from ulmfit_pipe.training.phases import head_only as head_only
    from ulmfit_pipe.training.phases import linear_probe_then_fine_tune as linear_probe_then_fine_tune
    from ulmfit_pipe.training.records import Batches as Batches
    from ulmfit_pipe.training.records import Checkpoints as Checkpoints
    from ulmfit_pipe.training.records import EpochRecord as EpochRecord
    from ulmfit_pipe.training.records import Metric as Metric
    from ulmfit_pipe.training.records import Phase as Phase
    from ulmfit_pipe.training.records import StepRecord as StepRecord
    from ulmfit_pipe.training.records import Task as Task
    from ulmfit_pipe.training.records import Tracker as Tracker
    from ulmfit_pipe.training.records import TrainingOptions as TrainingOptions
    from ulmfit_pipe.training.resume.preemption import Preempted as Preempted
    from ulmfit_pipe.training.schedules import Schedule as Schedule

__version__ = "0.1.0"

_HOMES = {
    "ulmfit_pipe.data.images.augmentation": ["Augmentation"],
    "ulmfit_pipe.data.images.batches": ["ImageBatches", "ImagePixels"],
    "ulmfit_pipe.data.images.files": ["ImageError", "ImageScan", "load_images"],
    "ulmfit_pipe.data.splits": ["split_train_validation"],
    "ulmfit_pipe.data.streams.backbone_batches": ["BackboneBatches", "Windows"],
    "ulmfit_pipe.data.streams.classifier_batches": ["ClassifierBatches"],
    "ulmfit_pipe.data.streams.lm_batches": ["LanguageModelBatches"],
    "ulmfit_pipe.data.streams.masking": ["TokenMasking"],
    "ulmfit_pipe.data.streams.token_blocks": ["BlockLayout", "TokenBlockBatches"],
    "ulmfit_pipe.data.tables.row_sources": ["TableReading"],
    "ulmfit_pipe.data.tables.tables": ["FileFacts", "TableError", "load_table"],
    "ulmfit_pipe.data.text.pretrained_tokenizers": ["SpecialTokens"],
    "ulmfit_pipe.data.text.ulmfit_tokenizer": ["UlmfitTokenizer"],
    "ulmfit_pipe.errors": ["UlmfitError"],
    "ulmfit_pipe.images.classifier": ["ImageParts", "build_image_learner", "train_image_classifier"],
    "ulmfit_pipe.images.pipeline": ["ImagePipeline", "run_image_pipeline", "thawing_table"],
    "ulmfit_pipe.images.predict": ["ImagePredictor"],
    "ulmfit_pipe.models.awd_lstm.configuration_awd_lstm": ["AwdLstmConfig"],
    "ulmfit_pipe.models.awd_lstm.modeling_awd_lstm": [
        "AwdLstmCausalLMOutput",
        "AwdLstmForCausalLM",
        "AwdLstmForSequenceClassification",
        "AwdLstmModel",
        "AwdLstmModelOutput",
        "AwdLstmSequenceClassifierOutput",
    ],
    "ulmfit_pipe.models.builtin_models": ["builtin_models"],
    "ulmfit_pipe.models.heads.pooling_classifier": ["PoolingClassifierConfig", "PoolingForSequenceClassification"],
    "ulmfit_pipe.models.images.classifier": ["UlmfitForImageClassification", "UlmfitImageConfig"],
    "ulmfit_pipe.models.layer_groups.group_specs": ["layer_group_specs"],
    "ulmfit_pipe.models.layer_groups.spec": ["LayerGroupSpec"],
    "ulmfit_pipe.models.sentence_encoders": ["SentenceEncoderError"],
    "ulmfit_pipe.program": ["run_recipe"],
    "ulmfit_pipe.reports.plots": ["Picture"],
    "ulmfit_pipe.reports.result_table": ["metrics_table"],
    "ulmfit_pipe.reports.text_tables": ["Report"],
    "ulmfit_pipe.settings.images": [
        "AugmentationSettings",
        "ImageClassifierSettings",
        "ImageHeadSettings",
        "ImageSettings",
        "PretrainingSettings",
        "SmallResNetSettings",
    ],
    "ulmfit_pipe.settings.model_files": [
        "ConfigsSettings",
        "ExportFastaiSettings",
        "ImportFastaiSettings",
        "PackageSettings",
        "PushSettings",
        "ShowFiltersSettings",
    ],
    "ulmfit_pipe.settings.guides": ["Guide"],
    "ulmfit_pipe.settings.parsing": ["parse_settings"],
    "ulmfit_pipe.settings.prediction": [
        "EvaluateSettings",
        "ExplainSettings",
        "LabelNextSettings",
        "PredictFileSettings",
        "ServeSettings",
    ],
    "ulmfit_pipe.settings.reports": ["ReportSettings"],
    "ulmfit_pipe.settings.studies": ["AblationSettings", "LowShotSettings", "TransferabilitySettings"],
    "ulmfit_pipe.settings.tables": ["CheckDataSettings", "RowLimits"],
    "ulmfit_pipe.settings.text": ["ClassifierSettings", "LanguageModelSettings"],
    "ulmfit_pipe.settings.text_runs": [
        "ClassifierJob",
        "DemoSettings",
        "LanguageModelJob",
        "LearningRateJob",
        "PipelineSettings",
        "UpdateSettings",
    ],
    "ulmfit_pipe.settings.values": ["SettingsError"],
    "ulmfit_pipe.stages.context": ["RunContext"],
    "ulmfit_pipe.stages.finished": ["StageResult"],
    "ulmfit_pipe.stages.model_names": ["ArtifactError", "ResolvedModel"],
    "ulmfit_pipe.stages.presets": ["Dropouts", "Preset", "StageOptimizer"],
    "ulmfit_pipe.stages.saved_learner": ["groups_of", "load_learner"],
    "ulmfit_pipe.storage.atomic": ["CheckpointError", "OutputError"],
    "ulmfit_pipe.studies.ablation": ["run_ablation"],
    "ulmfit_pipe.studies.demo": ["run_demo"],
    "ulmfit_pipe.studies.low_shot": ["run_low_shot"],
    "ulmfit_pipe.studies.transferability.study": ["run_transferability"],
    "ulmfit_pipe.text.classifier": ["ClassifierParts", "build_classifier_learner", "train_classifier"],
    "ulmfit_pipe.text.head_probe": ["ProbeError"],
    "ulmfit_pipe.text.scores.interpretation": ["ClassificationInterpretation"],
    "ulmfit_pipe.text.jobs": ["find_learning_rate", "run_classifier", "run_language_model"],
    "ulmfit_pipe.text.labelling.label_next": ["LabelNext", "RowToLabel", "label_next"],
    "ulmfit_pipe.text.labelling.learning_curve": ["LearningCurve"],
    "ulmfit_pipe.text.language_model": ["build_language_model_learner", "train_language_model"],
    "ulmfit_pipe.text.language_model_parts": ["LanguageModelParts"],
    "ulmfit_pipe.text.language_model_scores": ["describe_perplexity"],
    "ulmfit_pipe.text.pipeline": ["TextPipeline", "run_pipeline"],
    "ulmfit_pipe.text.predict.explain": ["Explanation", "explain", "explain_texts"],
    "ulmfit_pipe.text.predict.explained_report": ["make_report"],
    "ulmfit_pipe.text.predict.evaluation": ["evaluate_file", "evaluate_table"],
    "ulmfit_pipe.text.predict.files": ["PredictSummary", "predict_file"],
    "ulmfit_pipe.text.predict.predictor": ["Predictor", "ScoredRows"],
    "ulmfit_pipe.text.updating.update": ["run_update", "update_table"],
    "ulmfit_pipe.tools.fastai.export_fastai": ["ExportSummary", "export_fastai"],
    "ulmfit_pipe.tools.fastai.import_fastai": ["ImportSummary", "import_fastai"],
    "ulmfit_pipe.tools.fastai.safe_pickles": ["UnsafePickleError"],
    "ulmfit_pipe.tools.inspection.show_filters": ["ShownFilters", "show_filters"],
    "ulmfit_pipe.tools.inspection.weight_comparison": ["compare_weights"],
    "ulmfit_pipe.tools.packaging.package_model": ["package_language_model"],
    "ulmfit_pipe.tools.serving.server": ["ServeError", "build_app", "serve"],
    "ulmfit_pipe.tools.packaging.push": ["PushError", "push"],
    "ulmfit_pipe.tools.table_check.check_data": ["Problem", "check_data", "describe_problems"],
    "ulmfit_pipe.training.compute.accelerator_checks": ["UnsupportedAcceleratorError"],
    "ulmfit_pipe.training.distributed.agreement": ["DisagreementError"],
    "ulmfit_pipe.training.distributed.launch": ["LaunchError"],
    "ulmfit_pipe.training.distributed.processes": ["ProcessError"],
    "ulmfit_pipe.training.history": ["History"],
    "ulmfit_pipe.training.layer_groups": ["LayerGroup", "freeze_to", "split_layer_groups"],
    "ulmfit_pipe.training.learner": ["Learner"],
    "ulmfit_pipe.training.logs.accelerate_trackers": ["AccelerateTrackers"],
    "ulmfit_pipe.training.logs.events": ["JsonlLog"],
    "ulmfit_pipe.training.logs.weight_changes": ["WeightChange", "WeightChanges", "weight_changes"],
    "ulmfit_pipe.training.loop": ["NonFiniteLossError"],
    "ulmfit_pipe.training.lr_finder": ["LRFinderResult"],
    "ulmfit_pipe.training.metrics": ["ClassificationMetric", "LanguageModelMetric", "MultiLabelMetric"],
    "ulmfit_pipe.training.objectives": ["ClassificationObjective", "Objective", "SequenceObjective"],
    "ulmfit_pipe.training.phases": [
        "Plan",
        "chain_thaw",
        "full",
        "gradual_unfreezing",
        "head_only",
        "linear_probe_then_fine_tune",
    ],
    "ulmfit_pipe.training.records": [
        "Batches",
        "Checkpoints",
        "EpochRecord",
        "Metric",
        "Phase",
        "StepRecord",
        "Task",
        "Tracker",
        "TrainingOptions",
    ],
    "ulmfit_pipe.training.resume.preemption": ["Preempted"],
    "ulmfit_pipe.training.schedules": ["Schedule"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605  # a list; built so that a name is written once

if not TYPE_CHECKING:  # a type checker that knew this function would take any name for public

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'ulmfit_pipe' has no attribute {name!r}; its public names are {__all__}")
        # tqdm's advice, in red, where a notebook has no widgets: bars are text there
        warnings.filterwarnings("ignore", message="IProgress not found")
        return getattr(import_module(_HOME_OF[name]), name)

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
