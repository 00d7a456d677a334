"""Two saved models side by side, such as a pretrained one and what was fine-tuned from it: how far each weight moved.

They may be of different classes of one architecture (an encoder, a language model, a classifier): weights are matched
by name inside the part that both have, and what only the later one has, such as a new head, counts as new.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ulmfit_pipe.models.images.backbones import channels_of
from ulmfit_pipe.models.layer_groups.image_groups import backbone_stages
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_model
from ulmfit_pipe.stages.saved_learner import auto_class_of, groups_of
from ulmfit_pipe.training.logs.weight_changes import WeightChanges, weight_changes
from ulmfit_pipe.training.resume.saved_learner import untied_state

ADVICE = "give two of one architecture and size, such as a pretrained model and what was fine-tuned from it"


@dataclass(frozen=True)
class ModelPair:
    """Two models of one architecture, and how names of the later one read in the earlier.

    Attributes:
        before: The earlier model.
        after: The later one.
        name_before: Folder or name of the earlier, for messages.
        name_after: Of the later.
        prefix_before: What names of the part that both have begin with in the earlier model.
        prefix_after: And in the later.
    """

    before: Any
    after: Any
    name_before: str
    name_after: str
    prefix_before: str
    prefix_after: str

    def earlier_name(self, name: str) -> str | None:
        """Return what a module or tensor of the later model would be called in the earlier; None outside that part."""
        own = self.prefix_after
        return self.prefix_before + name[len(own) :] if name.startswith(own) else None

    @property
    def takes_images(self) -> bool:
        """Whether they are image models."""
        return self.after.main_input_name == "pixel_values"


def compare_weights(before: str | Path, after: str | Path) -> WeightChanges:
    """Report how far every weight of a saved model moved from another's.

    Args:
        before: Folder, built-in name or hub id of the earlier model.
        after: Of the later one, whose layer groups are used.

    Returns:
        Rows by layer group, tensor and buffer. New are: a head that the earlier model lacks, or has for other labels;
        an embedding of another vocabulary; a first convolution for other channels.

    Raises:
        ArtifactError: One cannot be loaded, or they are of different architectures or sizes.
    """
    return changes_of(load_pair(before, after))


def load_pair(before: str | Path, after: str | Path) -> ModelPair:
    """Load two models; arguments and errors as in `compare_weights`."""
    configs = {str(name): load_config(name) for name in (before, after)}
    kinds = [_bare_config(configs[str(name)]).model_type for name in (before, after)]
    if kinds[0] != kinds[1]:
        raise ArtifactError(
            f"{before} is a {kinds[0]!r} model, {after} a {kinds[1]!r}: their weights cannot be compared; {ADVICE}"
        )
    models = [_load(name, configs[str(name)]) for name in (before, after)]
    depths = [getattr(_bare_config(model.config), "num_hidden_layers", None) for model in models]
    if models[1].main_input_name != "pixel_values" and depths[0] != depths[1]:
        raise ArtifactError(
            f"{before} has {depths[0]} layers, {after} {depths[1]}: their weights cannot be compared; {ADVICE}"
        )
    prefixes = _shared_prefixes(models[0], models[1])
    return ModelPair(models[0], models[1], str(before), str(after), *prefixes)


def changes_of(pair: ModelPair) -> WeightChanges:
    """Report how far every weight of the later model moved; errors as in `compare_weights`."""
    groups = groups_of(pair.after)
    old, now = untied_state(pair.before), untied_state(pair.after)
    base = _base_prefix(pair.after)
    same_head = type(pair.before) is type(pair.after) and pair.before.config.id2label == pair.after.config.id2label
    earlier = {name: pair.earlier_name(name) for name in now if same_head or name.startswith(base)}
    before = {name: old[key] for name, key in earlier.items() if key in old}
    new = []
    for group in groups:
        for name, parameter in group.parameters:
            if _fits(before.get(name), parameter):
                continue
            new.append(name)
            if name.startswith(base):
                _refuse_unexplained(pair, name, before.get(name), parameter, in_head=group.name == "head")
    now_comparable = {name: value for name, value in now.items() if _fits(before.get(name), value)}
    return weight_changes(before, now_comparable, groups, new=new)


def _fits(before: Tensor | None, after: Tensor) -> bool:
    """Whether a tensor can be compared; a buffer that cannot be is left out, parameters are checked one by one."""
    return before is not None and before.shape == after.shape


def _load(name: str | Path, config: Any) -> Any:
    return load_model(name, auto_class_of((config.architectures or [""])[0]))


def _bare_config(config: Any) -> Any:
    """Return the configuration of the backbone, which may be in that of a classifier."""
    return getattr(config, "backbone_config", None) or config.get_text_config()


def _base_prefix(model: Any) -> str:
    """Return what names of everything but the head begin with; nothing where the model has no head."""
    name = model.base_model_prefix
    return f"{name}." if name and isinstance(getattr(model, name, None), nn.Module) else ""


def _shared_prefixes(before: Any, after: Any) -> tuple[str, str]:
    """Return the prefixes, of the earlier and the later model, below which they share most names."""
    names = [{name for name, _ in model.named_parameters()} for model in (before, after)]
    options = [dict.fromkeys(["", _base_prefix(model)]) for model in (before, after)]

    def shared(pair: tuple[str, str]) -> int:
        below = [
            {name[len(own) :] for name in held if name.startswith(own)} for held, own in zip(names, pair, strict=True)
        ]
        return len(below[0] & below[1])

    return max(((own, other) for own in options[0] for other in options[1]), key=shared)


def _refuse_unexplained(pair: ModelPair, name: str, before: Tensor | None, after: Tensor, *, in_head: bool) -> None:
    """Raise if a weight is missing or of another shape for no reason that leaves the other weights comparable.

    Such reasons are a pooler (in the head's group), another vocabulary, other channels, and stages that were removed
    before a norm.
    """
    if before is None:
        if in_head:
            return
        raise ArtifactError(
            f"{pair.name_before} lacks {name!r} of {pair.name_after}: their weights cannot be compared; {ADVICE}"
        )
    configs = [_bare_config(model.config) for model in (pair.before, pair.after)]
    was, now = tuple(before.shape), tuple(after.shape)
    if pair.takes_images:
        channels = tuple(channels_of(config) for config in configs)
        fewer = len(backbone_stages(pair.after)) < len(backbone_stages(pair.before))
        explained = len(now) == 4 and was[:1] + was[2:] == now[:1] + now[2:] and (was[1], now[1]) == channels
        explained = explained or (fewer and len(now) == 1)
    else:
        explained = was[1:] == now[1:] and (was[0], now[0]) == tuple(config.vocab_size for config in configs)
    if not explained:
        raise ArtifactError(
            f"{name!r} has the shape {was} in {pair.name_before} and {now} in {pair.name_after}: models of different "
            f"sizes cannot be compared; {ADVICE}"
        )
