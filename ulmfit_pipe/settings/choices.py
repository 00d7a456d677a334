"""Closed lists of values that several settings share, and values with a meaning of their own."""

from typing import Literal, TypeAlias

PresetName: TypeAlias = Literal["auto", "paper", "scripts-2018", "fastai", "transformer"]
Precision: TypeAlias = Literal["no", "fp16", "bf16", "fp8"]
UnknownText: TypeAlias = Literal["error", "allow"]
BaselineName: TypeAlias = Literal["none", "tf-idf"]
EmptyText: TypeAlias = Literal["error", "skip"]
LongDocuments: TypeAlias = Literal["truncate", "head-tail", "windows"]

DEFAULT_MODEL = "awd-lstm-en"  # reads English forward
BACKWARD_MODEL = "awd-lstm-en-backward"  # its counterpart for an ensemble
BUILTIN_NAMES = (DEFAULT_MODEL, BACKWARD_MODEL)

ALL_ROWS = 0  # the size that stands for every labelled row
LabelStrategy: TypeAlias = Literal["margin-kmeans", "margin", "entropy", "badge", "kmeans", "random"]
