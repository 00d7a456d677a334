"""The AWD-LSTM as a transformers model: backbone, language model, classifier of documents of any length.

Hidden state is passed and returned, never stored. Shapes use batch, seq_len, embedding, hidden; the last LSTM layer is
`embedding` wide. Source: Merity et al. 2017; Howard & Ruder 2018; semantics of fastai 2.8 (text/models).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.dropout import LstmState, TimeSharedDropout, WeightDropLSTM, drop_vocabulary_rows
from ulmfit_pipe.models.heads.classifier_heads import (
    ConcatPooling,
    PoolingClassifierHead,
    PrefixPool,
    at_least_single,
    initialize_head,
)
from ulmfit_pipe.models.heads.document_windows import document_lengths, gradient_starts, reversed_documents
from ulmfit_pipe.models.quiet_transformers import quiet_transformers

# (decoder's input, its weight, its bias) -> loss
DecoderLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
HiddenState = tuple[LstmState, ...]  # one (h, c) per layer, each float (1, batch, that layer's width)

EMBEDDING_INIT_RANGE = 0.1  # uniform init of embedding and decoder, fastai 2.8 and Merity et al. 2017


@dataclass
class AwdLstmModelOutput(ModelOutput):
    """`last_hidden_state` float (batch, seq_len, embedding), undropped; `hidden_state`, the state after the text."""

    last_hidden_state: torch.Tensor | None = None
    hidden_state: HiddenState | None = None


@dataclass
class AwdLstmCausalLMOutput(ModelOutput):
    """`logits` float (batch, seq_len, vocab); `raw_output` and `dropped_output` float (batch, seq_len, embedding).

    They are the last layer before and after output dropout: TAR takes the first, AR the second.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_state: HiddenState | None = None
    raw_output: torch.Tensor | None = None
    dropped_output: torch.Tensor | None = None


@dataclass
class AwdLstmSequenceClassifierOutput(ModelOutput):
    """`logits` float (batch, num_labels). In training also `raw_output`, for AR and TAR, and `raw_mask`.

    `raw_output` float (batch, kept, embedding) are the outputs that keep gradients, right-padded with zeros;
    `raw_mask` bool (batch, kept) is True at real positions.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    raw_output: torch.Tensor | None = None
    raw_mask: torch.Tensor | None = None


class AwdLstmPreTrainedModel(PreTrainedModel):
    """What the three forms share: configuration class, names, initialization."""

    config_class = AwdLstmConfig
    config: AwdLstmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _input_embed_layer = "embeddings"
    supports_gradient_checkpointing = True

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, without its progress bar."""
        with quiet_transformers():
            super().save_pretrained(*args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # Called for the modules that hold parameters themselves; one that only contains others is skipped.
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -EMBEDDING_INIT_RANGE, EMBEDDING_INIT_RANGE)
        elif isinstance(module, WeightDropLSTM):
            for weight in module.parameters(recurse=False):
                init.uniform_(weight, -module.init_bound, module.init_bound)
        elif isinstance(module, nn.Linear) and module.bias is not None:  # the decoder
            init.uniform_(module.weight, -EMBEDDING_INIT_RANGE, EMBEDDING_INIT_RANGE)
            init.zeros_(module.bias)
        else:
            initialize_head(module)


class AwdLstmModel(AwdLstmPreTrainedModel):
    """Embedding and LSTM layers with embedding, input, hidden and weight dropout."""

    def __init__(self, config: AwdLstmConfig) -> None:
        """Build the layers from the configuration, freshly initialized."""
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.input_dropout = TimeSharedDropout(config.input_dropout)
        self.layers = nn.ModuleList(
            [WeightDropLSTM(i, o, weight_dropout=config.weight_dropout) for i, o in config.layer_sizes()]
        )
        self.hidden_dropout = TimeSharedDropout(config.hidden_dropout)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        hidden_state: HiddenState | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> AwdLstmModelOutput | tuple[Any, ...]:
        """Read a window of text.

        Args:
            input_ids: int64 (batch, seq_len). Padding, if any, is on the right and is read like a token.
            hidden_state: The state returned for the window before, or None at the start of the text.
            return_dict: False returns a plain tuple.
            **kwargs: Ignored, for callers that pass transformers' common arguments.

        Raises:
            ValueError: The state is for another batch size or number of layers.
        """
        state = self._checked_state(hidden_state, input_ids.shape[0])
        x = self.embeddings(input_ids)  # (batch, seq_len, embedding)
        if self.embeddings.training and self.config.embedding_dropout > 0:  # off with the embedding's own layer group
            x = drop_vocabulary_rows(
                x, input_ids, vocab_size=self.embeddings.num_embeddings, p=self.config.embedding_dropout
            )
        x = self.input_dropout(x)
        new_state = []
        for i, layer in enumerate(self.layers):
            x, layer_state = layer(x, state[i])  # (batch, seq_len, hidden), embedding after the last
            new_state.append(layer_state)
            if i + 1 < len(self.layers):
                x = self.hidden_dropout(x)
        output = AwdLstmModelOutput(last_hidden_state=x, hidden_state=tuple(new_state))
        return output if _returns_dict(self, return_dict) else output.to_tuple()

    def _checked_state(self, state: HiddenState | None, batch: int) -> tuple[LstmState | None, ...]:
        if state is None:
            return (None,) * len(self.layers)
        if len(state) != len(self.layers) or any(h.shape[1] != batch for h, _ in state):
            found = [tuple(h.shape) for h, _ in state]
            raise ValueError(
                f"hidden_state has h of shapes {found}, but this model has {len(self.layers)} layers and input_ids "
                f"has a batch of {batch}; pass the state of the same rows, or None to start afresh"
            )
        return state


class AwdLstmForCausalLM(AwdLstmPreTrainedModel, GenerationMixin):
    """Language model: the backbone, output dropout, and a decoder that shares the embedding's weight.

    A backward model reads text that its caller has already reversed.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}
    _is_stateful = True  # transformers: this state cannot be rewound to an earlier token

    def __init__(self, config: AwdLstmConfig) -> None:
        """Build backbone and decoder from the configuration."""
        super().__init__(config)
        self.model = AwdLstmModel(config)
        self.output_dropout = TimeSharedDropout(config.output_dropout)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        hidden_state: HiddenState | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        decoder_loss: DecoderLoss | None = None,
        **kwargs: Any,
    ) -> AwdLstmCausalLMOutput | tuple[Any, ...]:
        """Score the next token at every position.

        Args:
            input_ids: int64 (batch, seq_len).
            hidden_state: The state returned for the window before, or None at the start of the text.
            labels: int64 (batch, seq_len), not yet shifted (transformers' convention); -100 is ignored.
            return_dict: False returns a plain tuple.
            decoder_loss: Takes the decoder's input (batch, seq_len, embedding), weight and bias, and returns the
                ``loss``; no logits are computed.
            **kwargs: Ignored, for callers that pass transformers' common arguments.
        """
        encoded = self.model(input_ids, hidden_state=hidden_state, return_dict=True)
        raw_output = encoded.last_hidden_state  # (batch, seq_len, embedding)
        dropped_output = self.output_dropout(raw_output)
        logits, loss = None, None
        if decoder_loss is not None:
            loss = decoder_loss(dropped_output, self.lm_head.weight, self.lm_head.bias)
        else:
            logits = self.lm_head(dropped_output)  # (batch, seq_len, vocab)
        if labels is not None and logits is not None:
            targets = labels[:, 1:].reshape(-1)
            scores = at_least_single(logits[:, :-1].reshape(-1, logits.shape[-1]))
            loss_sum = F.cross_entropy(scores, targets, ignore_index=-100, reduction="sum")
            loss = loss_sum / (targets != -100).sum().clamp(min=1)
        output = AwdLstmCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_state=encoded.hidden_state,
            raw_output=raw_output,
            dropped_output=dropped_output,
        )
        return output if _returns_dict(self, return_dict) else output.to_tuple()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: HiddenState | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Read the whole prompt first, then one token at a time from the carried state.

        Raises:
            ValueError: The prompts are padded, which a recurrent state cannot skip.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError(
                "generate() got padded prompts, and an LSTM would read the padding; generate for prompts of one "
                "length at a time, or one by one"
            )
        return {"input_ids": input_ids if state is None else input_ids[:, -1:], "hidden_state": state}

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return {**model_kwargs, "state": outputs["hidden_state"]}  # "state": a cache name that generate() reorders

    def _reorder_cache(self, state: HiddenState, beam_idx: torch.Tensor) -> HiddenState:
        return tuple((h.index_select(1, beam_idx), c.index_select(1, beam_idx)) for h, c in state)


class AwdLstmForSequenceClassification(AwdLstmPreTrainedModel):
    """Classifier of documents of any length: the backbone, concat pooling, and the two-block head.

    Texts are given in reading order; a backward model turns each around itself. All of a document is read and pooled,
    in chunks of `bptt` tokens with carried state; only the last `gradient_window + bptt` tokens at most are read with
    gradients, so activation memory is bounded (BPT3C, Howard & Ruder 2018, section 3.3). What a document gets does not
    depend on its neighbours in the batch.
    """

    runs_unevenly = True  # as often as the longest document asks for: processes could not wait for one another

    def __init__(self, config: AwdLstmConfig) -> None:
        """Build backbone and head from the configuration."""
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.model = AwdLstmModel(config)
        self.pooling = ConcatPooling()
        self.classifier = PoolingClassifierHead(
            3 * config.embedding_size,
            config.head_hidden_size,
            self.num_labels,
            dropout=config.output_dropout,
            hidden_dropout=config.head_dropout,
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> AwdLstmSequenceClassifierOutput | tuple[Any, ...]:
        """Score documents.

        Args:
            input_ids: int64 (batch, seq_len), right-padded.
            attention_mask: (batch, seq_len), 1 at real tokens; None takes every id but `pad_token_id` as real.
            labels: int64 (batch,), or float (batch, num_labels) of 0 and 1 for multi-label.
            return_dict: False returns a plain tuple.
            **kwargs: Ignored, for callers that pass transformers' common arguments.

        Raises:
            ValueError: A row is empty or not right-padded, or the problem type is regression.
        """
        lengths = document_lengths(input_ids, attention_mask, pad_token_id=self.config.pad_token_id)
        if self.config.direction == "backward":
            input_ids = reversed_documents(input_ids, lengths)
        starts = gradient_starts(lengths, bptt=self.config.bptt, gradient_window=self.config.gradient_window)
        state, prefix = self._read_prefixes(input_ids, starts)
        raw_output, raw_mask = self._read_with_gradients(input_ids, lengths, starts, state)
        pooled = self.pooling(raw_output, raw_mask, lengths=lengths.to(input_ids.device), prefix=prefix)
        logits = self.classifier(pooled)  # (batch, num_labels)
        output = AwdLstmSequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            raw_output=raw_output if self.training else None,
            raw_mask=raw_mask if self.training else None,
        )
        return output if _returns_dict(self, return_dict) else output.to_tuple()

    @torch.no_grad()
    def _read_prefixes(
        self, input_ids: torch.Tensor, starts: torch.Tensor
    ) -> tuple[HiddenState | None, PrefixPool | None]:
        """Read each row up to its start int64 (batch,), a multiple of bptt; return the states and the pool."""
        longest, bptt = int(starts.max()), self.config.bptt
        if longest == 0:
            return None, None
        batch, device = len(input_ids), input_ids.device
        weight = self.model.embeddings.weight
        state = tuple(
            (weight.new_zeros(1, batch, width), weight.new_zeros(1, batch, width))
            for _, width in self.config.layer_sizes()
        )
        pool = PrefixPool(at_least_single(state[-1][0][0]))  # the last layer's (batch, embedding)
        for begin in range(0, longest, bptt):
            rows = (starts > begin).nonzero().squeeze(1).to(device)  # (n,)
            old = tuple((h[:, rows], c[:, rows]) for h, c in state)
            out = self.model(input_ids[rows, begin : begin + bptt], hidden_state=old, return_dict=True)
            for (h, c), (new_h, new_c) in zip(state, out.hidden_state, strict=True):
                h[:, rows], c[:, rows] = new_h.to(h.dtype), new_c.to(c.dtype)
            pool.update(rows, out.last_hidden_state)
        torch.clear_autocast_cache()  # weights cast without gradients here must not serve the part with gradients
        return state, pool

    def _read_with_gradients(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor, state: HiddenState | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read each row from its own start on; return outputs (batch, kept, embedding), 0 at padding, and mask."""
        rest, order = (lengths - starts).sort(descending=True)
        device, batch, bptt = input_ids.device, len(input_ids), self.config.bptt
        rows = order.to(device)
        ends, begins = lengths.to(device)[rows, None], starts.to(device)[rows, None]  # (batch, 1)
        if state is not None:
            state = tuple((h[:, rows], c[:, rows]) for h, c in state)
        outputs, masks = [], []
        for begin in range(0, int(rest[0]), bptt):
            n, width = int((rest > begin).sum()), min(bptt, int(rest[0]) - begin)
            positions = begins[:n] + begin + torch.arange(width, device=device)  # (n, width)
            chunk = input_ids[rows[:n, None], positions.clamp(max=input_ids.shape[1] - 1)]
            if state is not None:
                state = tuple((h[:, :n].detach(), c[:, :n].detach()) for h, c in state)
            out = self.model(chunk, hidden_state=state, return_dict=True)
            state = out.hidden_state
            mask = positions < ends[:n]
            outputs.append(F.pad(out.last_hidden_state * mask[..., None], (0, 0, 0, 0, 0, batch - n)))
            masks.append(F.pad(mask, (0, 0, 0, batch - n)))
        back = rows.argsort()
        return torch.cat(outputs, dim=1)[back], torch.cat(masks, dim=1)[back]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, problem = at_least_single(logits), self.config.problem_type
        if problem == "regression":
            raise ValueError(
                "problem_type 'regression' is not supported; use 'single_label_classification' or "
                "'multi_label_classification'"
            )
        if problem == "multi_label_classification" or (problem is None and labels.is_floating_point()):
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


def _returns_dict(model: PreTrainedModel, return_dict: bool | None) -> bool:
    return bool(model.config.return_dict if return_dict is None else return_dict)
