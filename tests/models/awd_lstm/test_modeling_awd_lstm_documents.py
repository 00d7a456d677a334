"""How `AwdLstmForSequenceClassification` reads documents: any length, any batch, bounded memory."""

import pytest
import torch
from torch.nn import functional as F

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import SCALED_DROPOUTS, AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForSequenceClassification

BPTT, WINDOW = 4, 8  # at most 12 tokens keep gradients
LENGTHS = [30, 5, 13, 1, 12, 41, 4, 27]
NO_DROPOUT = dict.fromkeys((*SCALED_DROPOUTS, "head_dropout"), 0.0)


def classifier(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 3, "num_labels": 4}
    model = AwdLstmForSequenceClassification(
        AwdLstmConfig(**{**sizes, "bptt": BPTT, "gradient_window": WINDOW, **NO_DROPOUT, **settings})
    )
    model.model.embeddings.weight.data.mul_(10)
    for block in model.classifier.blocks:
        block.norm.running_var.fill_(0.01)
    return model.eval()


def documents(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 11, (length,), generator=generator) for length in lengths]


def padded(rows, extra=0):
    longest = max(len(row) for row in rows) + extra
    ids = torch.stack([F.pad(row, (0, longest - len(row)), value=1) for row in rows])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


def gradients(model, **batch):
    model.zero_grad()
    (model(**batch).logits * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_a_documents_logits_do_not_depend_on_neighbours_order_or_padding():
    model, rows = classifier(), documents()
    alone = torch.cat([model(**padded([row])).logits for row in rows])
    order = torch.tensor([3, 0, 7, 5, 1, 6, 4, 2])
    shuffled = model(**padded([rows[i] for i in order], extra=9)).logits
    pairs = torch.cat([model(**padded([row, rows[5]])).logits[:1] for row in rows])
    assert alone.std(0).min() > 1e-3
    for batched in (model(**padded(rows)).logits, shuffled[order.argsort()], pairs):
        torch.testing.assert_close(batched, alone, atol=1e-5, rtol=0)


def test_a_documents_gradients_do_not_depend_on_its_batch():
    model, rows = classifier(), documents()
    alone = [gradients(model, **padded([row])) for row in rows]
    for name, together in gradients(model, **padded(rows, extra=3)).items():
        expected = sum(grads[name] for grads in alone)
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}")


def test_the_whole_text_is_read_and_pooled_whatever_the_gradient_window():
    row = documents([41])[0]
    whole = classifier().model(row[None]).last_hidden_state[0]
    pooled = torch.cat([whole[-1], whole.max(0).values, whole.mean(0)])
    for settings in ({}, {"gradient_window": 0, "bptt": 1}, {"gradient_window": 100}, {"bptt": 41}, {"bptt": 7}):
        model = classifier(**settings)
        expected = model.classifier(pooled[None])
        torch.testing.assert_close(model(row[None]).logits, expected, atol=1e-5, rtol=0)


def test_gradients_are_those_of_truncated_backpropagation_in_the_last_window():
    model, row = classifier(), documents([29])[0][None]
    state, outputs = None, []
    for begin in range(0, 29, BPTT):
        out = model.model(row[:, begin : begin + BPTT], hidden_state=state)
        state = tuple((h.detach(), c.detach()) for h, c in out.hidden_state)
        outputs.append(out.last_hidden_state if begin >= 20 else out.last_hidden_state.detach())
    whole = torch.cat(outputs, 1)[0]  # 20 tokens without gradients, 9 with
    logits = model.classifier(torch.cat([whole[-1], whole.max(0).values, whole.mean(0)])[None])
    (logits * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for name, grad in gradients(model, input_ids=row).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)


def test_what_is_kept_for_backward_is_bounded_by_the_gradient_window():
    def kept_elements(length):
        model, sizes = classifier().train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            out = model(**padded(documents([length, length])))
        assert out.raw_output.shape == (2, out.raw_mask.sum(1).max(), 5)
        return sum(sizes)

    assert kept_elements(12 + 400) <= 1.05 * kept_elements(13)


def test_training_returns_the_outputs_that_keep_gradients_padded_with_zeros():
    model = classifier().train()
    out = model(**padded(documents([13, 5])))
    assert out.raw_mask.sum(1).tolist() == [9, 5]
    assert out.raw_output.shape == (2, 9, 5)
    assert out.raw_output[1, 5:].abs().max() == 0 and out.raw_output.requires_grad
    assert model.eval()(**padded(documents([13, 5]))).raw_output is None


def test_a_backward_model_turns_each_document_around_itself():
    rows = documents()
    backward, forward = classifier(direction="backward"), classifier()
    turned = forward(**padded([row.flip(0) for row in rows])).logits
    torch.testing.assert_close(backward(**padded(rows)).logits, turned, atol=1e-6, rtol=0)
    assert not torch.allclose(backward(**padded(rows)).logits, forward(**padded(rows)).logits, atol=1e-3)


def test_without_a_mask_the_padding_id_tells_the_length():
    model, batch = classifier(), padded(documents())
    assert torch.equal(model(batch["input_ids"]).logits, model(**batch).logits)


def test_empty_left_padded_and_lonely_training_rows_are_refused():
    model = classifier()
    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        model(torch.tensor([[2, 5], [1, 1]]))
    with pytest.raises(ValueError, match="row 0 of the batch has padding before its last token; pad on the right"):
        model(torch.tensor([[1, 5], [2, 3]]))
    with pytest.raises(ValueError, match="needs at least 2 documents in a batch, got 1"):
        model.train()(torch.tensor([[2, 5]]))


def test_losses_are_cross_entropy_or_its_multi_label_form():
    model, batch = classifier(), padded(documents())
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    out = model(**batch, labels=labels)
    assert out.loss.item() == pytest.approx(F.cross_entropy(out.logits, labels).item(), abs=1e-6)
    many = torch.rand(8, 4).round()
    expected = F.binary_cross_entropy_with_logits(out.logits, many).item()
    assert model(**batch, labels=many).loss.item() == pytest.approx(expected, abs=1e-6)
    told = classifier(problem_type="multi_label_classification")(**batch, labels=many.long())
    assert told.loss.item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="'regression' is not supported; use 'single_label_classification'"):
        classifier(problem_type="regression")(**batch, labels=labels)


@pytest.mark.bf16
def test_bf16_autocast_reads_long_documents_and_reaches_every_parameter():
    model = classifier().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**padded(documents()), labels=torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(
        out.logits.float(), classifier().train()(**padded(documents())).logits, atol=0.1, rtol=0.1
    )


def test_saving_and_loading_a_classifier_is_bit_identical(tmp_path):
    model, batch = classifier(id2label=dict(enumerate("abcd"))), padded(documents())
    model.save_pretrained(tmp_path)
    loaded = AwdLstmForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    tensors = zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors)
