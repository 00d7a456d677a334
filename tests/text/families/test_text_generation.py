"""transformers' own text generation, told what our tokenizer means by a word."""

import pytest
import torch
from transformers import pipeline

from tests.support.tiny_runs import reviews
from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM

VOCAB_SIZES = {"unigram": 110, "bpe": 400, "word": 60}
PROMPTS = ["The film and its music", "Three brothers", "In two long hours"]


@pytest.mark.parametrize("kind", VOCAB_SIZES)
def test_the_pipeline_gives_the_text_of_generate_with_its_spaces(kind):
    texts = [text for text, _ in reviews(200)]
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=VOCAB_SIZES[kind])
    in_use = set().union(*tokenizer.encode_documents(texts)) - {*tokenizer.all_special_ids}  # whole words, nearly all
    torch.manual_seed(0)
    sizes = {"embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 2}
    model = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=len(tokenizer), **sizes)).eval()
    settings = {"max_new_tokens": 9, "do_sample": True, "suppress_tokens": [*{*range(len(tokenizer))} - in_use]}
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    apart = 0
    for seed, prompt in enumerate(PROMPTS * 2):
        torch.manual_seed(seed)
        (found,) = generate(prompt, **settings)
        torch.manual_seed(seed)
        ids = generate(prompt, return_tensors=True, **settings)[0]["generated_token_ids"]
        assert found["generated_text"].lower() == tokenizer.decode(ids, skip_special_tokens=True).lower()
        apart += found["generated_text"].startswith(f"{prompt} ")
    assert apart  # some first tokens began a word
