import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.support.small_transformers import ARCHITECTURES, BERT_SIZES, LABELS, changed, snapshot, tokens
from ulmfit_pipe.models.heads.window_classifier import WindowsForSequenceClassification
from ulmfit_pipe.models.layer_groups.adapter_groups import check_adapters, frozen_base_names, has_adapters
from ulmfit_pipe.models.layer_groups.group_specs import fixed_parameter_names, layer_group_specs
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.saved_learner import groups_of, load_learner
from ulmfit_pipe.training.layer_groups import freeze_to, train_mode, unfreeze
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.metrics import ClassificationMetric
from ulmfit_pipe.training.objectives import ClassificationObjective
from ulmfit_pipe.training.optim import build_optimizer, discriminative_lrs
from ulmfit_pipe.training.phases import gradual_unfreezing
from ulmfit_pipe.training.records import Task

peft = pytest.importorskip("peft", reason="peft is the optional extra [adapters]")

LR = 1e-2


def lora(**settings):
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, **settings})


def wrapped(name="bert", config=None):
    return peft.get_peft_model(ARCHITECTURES[name].build(), config or lora(target_modules=["query", "value"]))


def group_names(groups):
    return [group.name for group in groups]


def names_of(groups):
    return {name for group in groups for name, _ in group.parameters}


def train(model, groups, *, steps=3):
    optimizer = build_optimizer(groups, discriminative_lrs(LR, len(groups)), weight_decay=0.1)
    train_mode(model, groups)
    inputs = tokens()
    labels = inputs.pop("labels")
    for _ in range(steps):  # LoRA's first matrices have no gradient before the second ones have left zero
        optimizer.zero_grad()
        F.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()


ADAPTERS = {
    "LoRA on BERT": ("bert", lora(target_modules=["query", "value"])),
    "LoRA on GPT-2": ("gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "LoRA with biases on RoBERTa": ("roberta", lora(target_modules=["query"], bias="lora_only")),
    "LoRA with all biases on BERT": ("bert", lora(target_modules=["query"], bias="all")),
    "DoRA on Llama": ("llama", lora(target_modules=["q_proj", "down_proj"], use_dora=True)),
    "LoRA on a word embedding": ("bert", lora(target_modules=["query", "word_embeddings"])),
    "IA3 on BERT": (
        "bert",
        peft.IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
        ),
    ),
    "norms of Llama": ("llama", peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["norm", "input_layernorm"])),
}


@pytest.mark.parametrize(("name", "config"), ADAPTERS.values(), ids=list(ADAPTERS))
def test_what_may_move_is_what_peft_trains(name, config):
    model = wrapped(name, config)
    trained_by_peft = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    groups = groups_of(model)
    assert names_of(groups) == trained_by_peft
    freeze_to(groups, -1)  # what is frozen by us is no less an adapter
    assert names_of(groups_of(model)) == trained_by_peft
    assert fixed_parameter_names(model) == {key for key, _ in model.named_parameters()} - trained_by_peft


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("LoRA on BERT", ["block0", "block1", "block2", "head"]),
        ("LoRA on GPT-2", ["block0", "block1", "block2", "head"]),
        ("LoRA with all biases on BERT", ["embeddings", "block0", "block1", "block2", "head"]),
        ("LoRA on a word embedding", ["embeddings", "block0", "block1", "block2", "head"]),
    ],
)
def test_a_group_without_an_adapter_is_left_out(case, names):
    assert group_names(groups_of(wrapped(*ADAPTERS[case]))) == names


def test_every_adapter_learns_at_the_rate_of_the_layer_it_sits_in():
    model = wrapped()
    groups = groups_of(model)
    optimizer = build_optimizer(groups, discriminative_lrs(LR, len(groups)))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    seen = 0
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            block = int(name.split(".layer.")[1].split(".")[0])
            assert rates.pop(id(parameter)) == pytest.approx(LR / 2.6 ** (3 - block)), name
            seen += 1
        elif ".modules_to_save." in name:
            assert rates.pop(id(parameter)) == LR, name
            seen += 1
    assert not rates
    assert seen == 3 * 2 * 2 + 2  # blocks, query and value, two matrices; the classifier's weight and bias


def test_the_last_norm_belongs_to_the_last_block_under_an_adapter_too():
    groups = groups_of(wrapped(*ADAPTERS["norms of Llama"]))
    assert group_names(groups) == ["block0", "block1", "block2", "head"]
    assert any(".model.norm." in name for name, _ in groups[2].parameters)


def test_adapters_of_some_layers_only_make_groups_of_those():
    config = lora(target_modules=["query"], layers_to_transform=[0, 2])
    assert group_names(groups_of(wrapped("bert", config))) == ["block0", "block2", "head"]
    assert [spec.name for spec in layer_group_specs(wrapped("bert", config))][0] == "embeddings"


def test_bundles_hold_the_adapters_of_their_blocks():
    groups = groups_of(wrapped(), max_blocks=2)
    assert group_names(groups) == ["blocks0-1", "block2", "head"]
    assert [group.num_parameters for group in groups] == [2 * 64, 64, 8 * LABELS + LABELS]


@pytest.mark.parametrize("case", ["LoRA on BERT", "IA3 on BERT", "DoRA on Llama"])
def test_base_weights_never_move_and_adapters_only_when_thawed(case):
    model = wrapped(*ADAPTERS[case])
    groups = groups_of(model)
    base = frozen_base_names(model)
    unfreeze(groups)
    train(model, groups)
    for first in (-1, -2, 0):
        freeze_to(groups, first)
        before = snapshot(model)
        train(model, groups)
        assert changed(model, before) == names_of(groups[first:])
        assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if name in base)


class OneBatch:
    """Batches of one and the same batch."""

    def set_epoch(self, epoch):
        pass

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([tokens(), tokens()])


def learner_of(model):
    task = Task(OneBatch(), ClassificationObjective(), OneBatch(), lambda: ClassificationMetric(LABELS))
    return Learner(model, groups_of(model), task, accelerator=Accelerator(cpu=True), say=lambda _line: None)


def test_a_learner_thaws_adapters_group_by_group():
    model = wrapped()
    before = snapshot(model)
    learner = learner_of(model)
    learner.fit_plan(gradual_unfreezing(len(learner.layer_groups), lr=LR), keep_best=False)
    assert changed(model, before) == names_of(learner.layer_groups)


def with_other_weights(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    return model


def added_by_transformers():
    model = ARCHITECTURES["bert"].build()
    model.add_adapter(lora(target_modules=["query"], modules_to_save=["classifier"]))
    return model


@pytest.mark.parametrize(
    "build",
    [
        wrapped,
        added_by_transformers,
        lambda: WindowsForSequenceClassification(wrapped()),
        lambda: wrapped("llama", ADAPTERS["DoRA on Llama"][1]),
    ],
    ids=["peft", "transformers", "in windows", "DoRA"],
)
def test_a_learner_with_adapters_comes_back_whole(build, tmp_path):
    learner = learner_of(with_other_weights(build()))
    learner.freeze_to(-2)
    learner.fit(1, LR)
    learner.save(tmp_path / "saved")
    again = learner_of(build()).load(tmp_path / "saved")
    assert changed(again.model, snapshot(learner.model)) == set()
    assert again.freeze_map() == learner.freeze_map()
    assert {name for name, p in again.model.named_parameters() if p.requires_grad} == names_of(again.layer_groups[-2:])
    assert again.validate() == learner.validate()


def test_what_a_learner_with_adapters_saves_peft_puts_on_the_base_model(tmp_path):
    learner = learner_of(wrapped())
    learner.unfreeze()
    learner.fit(1, LR)
    learner.save(tmp_path / "saved")
    loaded = peft.PeftModel.from_pretrained(ARCHITECTURES["bert"].build(), tmp_path / "saved").eval()
    inputs = tokens()
    inputs.pop("labels")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, learner.model.eval()(**inputs).logits)


def test_a_saved_learner_with_adapters_does_not_say_how_to_build_its_model(tmp_path):
    learner = learner_of(wrapped())
    learner.save(tmp_path / "saved")
    words = r"saved holds a PeftModelForSequenceClassification without a config.json, .* load into it: Learner\(model"
    with pytest.raises(ArtifactError, match=words):
        load_learner(tmp_path / "saved", learner.task)


def test_a_head_outside_peft_is_trained_beside_the_adapters():
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            config = peft.LoraConfig(r=2, target_modules=["query"])
            self.encoder = peft.get_peft_model(ARCHITECTURES["bert"].build("Model"), config)
            self.score = nn.Linear(8, LABELS)

    groups = groups_of(WithHead())
    assert group_names(groups) == ["block0", "block1", "block2", "head"]
    assert [name for name, _ in groups[-1].parameters] == ["score.weight", "score.bias"]


def test_a_model_that_reads_in_windows_keeps_its_adapters_groups():
    groups = groups_of(WindowsForSequenceClassification(wrapped()))
    assert group_names(groups) == ["block0", "block1", "block2", "head"]
    assert all(".lora_" in name for name, _ in groups[0].parameters)


def test_adapters_of_an_image_model_are_in_its_groups():
    config = transformers.ViTConfig(**{**BERT_SIZES, "image_size": 4, "patch_size": 2}, num_labels=LABELS)
    inner = transformers.ViTForImageClassification(config)
    groups = groups_of(inner)
    model = peft.get_peft_model(
        inner, peft.LoraConfig(r=2, target_modules=r".*\.q_proj", modules_to_save=["classifier"])
    )
    adapted = groups_of(model)
    assert group_names(adapted) == group_names(groups)
    assert names_of(adapted) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_adapters_added_by_transformers_itself_are_found():
    model = ARCHITECTURES["bert"].build()
    assert not has_adapters(model)
    assert frozen_base_names(model) == frozenset()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    assert has_adapters(model)
    assert group_names(groups_of(model)) == ["block0", "block1", "block2", "head"]


def test_of_several_adapters_the_active_one_trains():
    model = wrapped()
    model.add_adapter("other", lora(target_modules=["query"]))
    assert all(".other" not in name for name in names_of(groups_of(model)))
    model.set_adapter("other")
    assert all(".default" not in name for name in names_of(groups_of(model)))


def test_prompts_are_refused_as_they_lie_in_no_layer():
    config = peft.PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, num_layers=3, token_dim=8, num_attention_heads=2
    )
    model = wrapped("bert", config)
    with pytest.raises(ValueError, match=r"tuned by prompts \(peft's prompt learning\), which are in no layer.*Lora"):
        layer_group_specs(model)


def test_a_model_none_of_whose_adapters_is_active_is_refused():
    model = wrapped()
    model.delete_adapter("default")
    with pytest.raises(ValueError, match=r"no weights of an active adapter .*\(its adapters: none\), so .*set_adapter"):
        check_adapters(model)
