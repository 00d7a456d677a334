from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.models.awd_lstm.vocab_transfer import VocabTransfer, remap_embeddings, transfer_vocabulary

OLD = ["unk", "pad", "the", "cat"]
NEW = ["unk", "pad", "dog", "cat"]


def language_model(**settings):
    torch.manual_seed(0)
    model = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=4, embedding_size=5, hidden_size=7, **settings)).eval()
    model.lm_head.bias.data = torch.tensor([0.0, 1.0, 2.0, 9.0])
    return model


def test_known_words_keep_their_rows_and_a_new_word_gets_the_mean():
    weight, bias, counts = remap_embeddings(torch.arange(12.0).view(4, 3), torch.tensor([0.0, 1, 2, 9]), OLD, NEW)
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5], [4.5, 5.5, 6.5], [9, 10, 11]]
    assert bias.tolist() == [0, 1, 3, 9]
    assert counts == VocabTransfer(kept=3, new=1)


def test_a_vocabulary_of_another_order_and_length_and_no_bias():
    weight, bias, counts = remap_embeddings(torch.arange(4.0)[:, None], None, OLD, ["cat", "a", "unk", "b", "the"])
    assert weight[:, 0].tolist() == [3, 1.5, 0, 1.5, 2]
    assert bias is None and counts == VocabTransfer(kept=3, new=2)


def test_the_filler_of_fastais_vocabularies_may_recur():
    old, new = ["unk", "pad", "xxfake", "xxfake"], ["unk", "pad", "xxfake", "xxfake", "xxfake"]
    assert remap_embeddings(torch.ones(4, 3), None, old, new)[2] == VocabTransfer(kept=5, new=0)


def test_a_word_twice_or_a_wrong_count_is_refused():
    with pytest.raises(ValueError, match="new vocabulary holds 'cat' twice, as id 0 and id 1"):
        remap_embeddings(torch.ones(4, 3), None, OLD, ["cat", "cat"])
    with pytest.raises(ValueError, match="the old vocabulary has 4 tokens but the embedding has 5 rows"):
        remap_embeddings(torch.ones(5, 3), None, OLD, NEW)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_gets_the_new_vocabulary_and_keeps_its_tie_and_its_answers(tied, tmp_path):
    model, new_tokens = language_model(tie_word_embeddings=tied), [*NEW, "bird"]
    known, moved = torch.tensor([[0, 3, 3]]), [0, 1, 3]
    before = model(known).logits[..., moved]
    assert transfer_vocabulary(model, OLD, new_tokens, vocab_hash="new") == VocabTransfer(kept=3, new=2)
    torch.testing.assert_close(model(known).logits[..., moved], before)
    assert (model.lm_head.weight is model.model.embeddings.weight) == tied
    assert (model.config.vocab_size, model.config.vocab_hash, model(known).logits.shape) == (5, "new", (1, 3, 5))
    model.save_pretrained(tmp_path)
    loaded = AwdLstmForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(known).logits, model(known).logits)


def test_subwords_move_to_another_subword_vocabulary_and_back():
    old, new = ["unk", "pad", "▁the", "cat"], ["unk", "pad", "cat", "▁th", "e", "the", "▁the"]
    model = language_model()
    rows, biases = model.model.embeddings.weight.detach().clone(), model.lm_head.bias.detach().clone()
    assert transfer_vocabulary(model, old, new) == VocabTransfer(kept=4, new=3)
    mean = rows.mean(0)
    expected = torch.stack([rows[0], rows[1], rows[3], mean, mean, mean, rows[2]])
    torch.testing.assert_close(model.model.embeddings.weight.detach(), expected)
    torch.testing.assert_close(model.lm_head.bias.detach(), torch.tensor([0.0, 1, 9, 3, 3, 3, 2]))
    assert transfer_vocabulary(model, new, old) == VocabTransfer(kept=4, new=0)
    assert torch.equal(model.model.embeddings.weight, rows) and torch.equal(model.lm_head.bias, biases)


def test_the_vocabulary_of_another_model_is_refused_by_its_hash_though_its_size_fits():
    model = language_model(vocab_hash="a" * 64)
    with pytest.raises(
        ValueError, match=r"has the hash bbbbbbbbbbbb..., the model was trained with aaaaaaaaaaaa\.\.\."
    ):
        transfer_vocabulary(model, OLD, NEW, vocab_hash="c", old_vocab_hash="b" * 64)
    assert transfer_vocabulary(model, OLD, NEW, vocab_hash="c", old_vocab_hash="a" * 64).kept == 3
    assert model.config.vocab_hash == "c"


def test_a_padding_id_that_changes_its_meaning_is_refused():
    with pytest.raises(ValueError, match="pad_token_id 1 is 'pad' in the old vocabulary and 'dog' in the new one"):
        transfer_vocabulary(language_model(), OLD, ["unk", "dog", "pad"])


def test_rows_move_as_fastais_match_embeds_moves_them():
    with np.load(Path(__file__).parents[2] / "reference" / "language_model.npz", allow_pickle=False) as stored:
        old_tokens, new_tokens = stored["old_tokens"].tolist(), stored["new_tokens"].tolist()
        weight = torch.from_numpy(stored["weights/0.encoder.weight"])
        bias = torch.from_numpy(stored["weights/1.decoder.bias"])
        moved_weight, moved_bias = torch.from_numpy(stored["moved_weight"]), torch.from_numpy(stored["moved_bias"])
    ours_weight, ours_bias, counts = remap_embeddings(weight, bias, old_tokens, new_tokens)
    torch.testing.assert_close(ours_weight, moved_weight, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours_bias, moved_bias, rtol=0, atol=1e-7)
    assert counts == VocabTransfer(kept=5, new=2)
