"""Windows of documents through a classifier, and the longest input of an architecture."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    OPTConfig,
    RobertaConfig,
    XLNetConfig,
)

from ulmfit_pipe.models.heads.window_classifier import (
    WindowsForSequenceClassification,
    bare_classifier,
    longest_input,
    mean_by_document,
)

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 10, "vocab_size": 30}


@pytest.fixture
def bert():
    torch.manual_seed(0)
    config = BertConfig(**SMALL, max_position_embeddings=16, num_labels=3)
    return AutoModelForSequenceClassification.from_config(config).eval()


def windows(*lengths):
    torch.manual_seed(1)
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(4, 30, (len(lengths), width)) * mask, "attention_mask": mask}


def test_a_documents_logits_are_the_mean_of_its_windows(bert):
    batch, document = windows(7, 5, 7, 7, 2), torch.tensor([0, 0, 1, 2, 2])
    whole = WindowsForSequenceClassification(bert)(**batch, document=document).logits
    alone = bert(**batch).logits
    expected = torch.stack([alone[[0, 1]].mean(0), alone[2], alone[[3, 4]].mean(0)])
    torch.testing.assert_close(whole, expected)


def test_without_documents_every_row_is_one(bert):
    batch = windows(7, 5)
    assert torch.equal(WindowsForSequenceClassification(bert)(**batch).logits, bert(**batch).logits)


def test_half_precision_is_averaged_in_float32():
    logits = torch.tensor([[1.0], [2.0], [2.0]], dtype=torch.bfloat16)
    assert mean_by_document(logits, torch.tensor([0, 0, 0])).tolist() == [[pytest.approx(5 / 3)]]


def test_without_gradients_many_windows_are_read_in_pieces_with_the_same_result(bert):
    batch, document = windows(7, 5, 7, 7, 2), torch.tensor([0, 0, 1, 2, 2])
    seen = []
    bert.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        whole = WindowsForSequenceClassification(bert)(**batch, document=document).logits
        pieces = WindowsForSequenceClassification(bert, piece_tokens=15).eval()(**batch, document=document).logits
    assert seen == [5, 2, 2, 1]
    torch.testing.assert_close(pieces, whole)


def test_every_window_gets_gradients(bert):
    wrapper = WindowsForSequenceClassification(bert, piece_tokens=7).train()
    batch = windows(7, 7)
    embedded = bert.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = wrapper.model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
    mean_by_document(logits, torch.tensor([0, 0])).sum().backward()
    assert bool((embedded.grad.abs().sum(dim=(1, 2)) > 0).all())


def test_a_document_of_very_many_windows_is_trained_on_in_pieces_with_the_same_gradients(bert):
    batch, document = windows(7, 5, 7, 7, 2), torch.tensor([0, 0, 0, 0, 1])
    kept, gradients = [0, 0], []
    for number, tokens in enumerate((7 * 5, 7 * 5 - 1)):
        wrapper = WindowsForSequenceClassification(bert, piece_tokens=14, trained_tokens=tokens)
        bert.zero_grad()

        def count(tensor, number=number):
            kept[number] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = wrapper(**batch, document=document).logits
        logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in bert.parameters()])
    assert 0 < kept[1] < kept[0] / 20  # the activations of windows are not kept
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(pieces, whole)


def test_weights_go_by_the_names_of_the_classifier_inside_and_that_is_what_is_saved(bert, tmp_path):
    wrapper = WindowsForSequenceClassification(bert)
    assert list(wrapper.state_dict()) == list(bert.state_dict())
    wrapper.load_state_dict({name: torch.zeros_like(value) for name, value in bert.state_dict().items()})
    assert not bert.classifier.weight.any()
    wrapper.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert list(loaded.state_dict()) == list(bert.state_dict())
    assert wrapper.config is bert.config
    assert bare_classifier(wrapper) is bert
    assert bare_classifier(bert) is bert


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (BertConfig(**SMALL, max_position_embeddings=16), 16),
        (RobertaConfig(**SMALL, max_position_embeddings=18, pad_token_id=1), 16),
        (MPNetConfig(**SMALL, max_position_embeddings=18), 16),
        (GPT2Config(vocab_size=30, n_embd=8, n_head=2, n_layer=1, n_positions=16), 16),
        (LlamaConfig(**SMALL, max_position_embeddings=16), 16),
        (
            OPTConfig(
                vocab_size=30,
                hidden_size=8,
                word_embed_proj_dim=8,
                num_attention_heads=2,
                num_hidden_layers=1,
                ffn_dim=10,
                max_position_embeddings=16,
            ),
            16,
        ),
        (XLNetConfig(vocab_size=30, d_model=8, n_head=2, n_layer=1, d_inner=10), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_the_longest_input_is_that_which_the_model_reads_and_no_longer_one(config, longest):
    model = AutoModel.from_config(config).eval()
    assert longest_input(model) == longest
    ids = torch.full((1, longest or 40), 7)
    assert model(input_ids=ids).last_hidden_state.shape[1] == ids.shape[1]
