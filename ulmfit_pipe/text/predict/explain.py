"""Why this label: how much each word of a text moves a classifier towards its label or away from it.

Integrated gradients between the text and one of the same length in which every token is padding: the attributions of
all words together are the difference of the two texts' log-odds (completeness). The path is integrated by
Gauss-Legendre quadrature, with twice the points until that sum is right. The library captum is not used: it
repeats what belongs to a row for every point, but the windows of one document are several rows.

Source: Sundararajan, Taly & Yan 2017, Axiomatic Attribution for Deep Networks.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.data.labels import clean_label
from ulmfit_pipe.data.text.pretrained_tokenizers import encode_documents, special_tokens_of
from ulmfit_pipe.data.text.text_rules import MAJ, REP, UP, WREP
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
from ulmfit_pipe.settings.prediction import ExplainSettings
from ulmfit_pipe.stages.python_input import check_texts
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.training.distributed.processes import to_device

POINTS = (16, 32, 64, 128, 256)  # of the quadrature, more until the sum is right
TOLERANCE = 0.03  # of the difference in log-odds, or of 1 where that is smaller
TOKENS_AT_ONCE = 4_096  # of a pass with gradients, padding included: memory, not result
MOST_TOKENS = 32_768  # of a text, all of which keep gradients: about 1 GB for the built-in model
FOLLOWERS = {UP: 1, MAJ: 1, REP: 2, WREP: 2}  # words that a mark of the text rules belongs to
Calls = list[tuple[Tensor, Tensor]]  # of an embedding, in order: its output on the path, and the whole way to it
COLOURS = {True: "46, 160, 67", False: "218, 54, 51"}  # red, green and blue of words for the label and against it
TERMINAL = {True: "\033[42m", False: "\033[41m", None: "\033[0m"}


@dataclass(frozen=True)
class Explanation:
    """What the words of one text contribute to a label.

    Attributes:
        label: The label that is explained, in the type that training had.
        score: Its probability.
        words: The words in order, each with its share of the log-odds: above 0 for the label, below it against it.
        log_odds: The label's log-odds, ``log(score / (1 - score))``.
        baseline: Its log-odds for a text of padding alone; ``log_odds - baseline`` is the sum over the words but for
            `gap`.
        gap: What the sum is off by, as a share of the difference (or of 1 where that is smaller).
    """

    label: Any
    score: float
    words: tuple[tuple[str, float], ...]
    log_odds: float
    baseline: float
    gap: float

    def strongest(self, count: int = 10) -> list[tuple[str, float]]:
        """Return the words that move the label most, in either direction, the strongest first."""
        return sorted(self.words, key=lambda word: -abs(word[1]))[:count]

    def __str__(self) -> str:
        """Return the label, its score and the strongest words, one per line."""
        words = [f"  {share:+.3f}  {in_one_line(word)}" for word, share in self.strongest()]
        head = f"{in_one_line(self.label)} {self.score:.3f}; words by their share of the log-odds:"
        return "\n".join([head, *words])

    def coloured(self) -> str:
        """Return the text for a terminal: green for the label, red against it, the clearest third of words alone."""
        bound = self._largest() / 3
        words = [
            f"{TERMINAL[share > 0]}{in_one_line(word)}{TERMINAL[None]}" if abs(share) >= bound else in_one_line(word)
            for word, share in self.words
        ]
        return f"{in_one_line(self.label)} {self.score:.3f}: {' '.join(words)}"

    def _repr_html_(self) -> str:
        largest = self._largest()
        words = [
            f'<span style="background: rgba({COLOURS[share > 0]}, {0.7 * abs(share) / largest:.2f})" '
            f'title="{share:+.3f}">{escape(word)}</span>'
            for word, share in self.words
        ]
        return f"<p><b>{escape(str(self.label))}</b> {self.score:.3f}: {' '.join(words)}</p>"

    def _largest(self) -> float:
        return max((abs(share) for _, share in self.words), default=0.0) or 1.0


def explain_texts(settings: ExplainSettings) -> list[Explanation]:
    """Explain what a saved classifier says of texts; errors are those of `Predictor.load` and `explain`."""
    predictor = Predictor.load(settings.model, trust_remote_code=settings.trust_remote_code)
    return [explain(predictor, text, label=settings.label) for text in settings.text]


def explain(predictor: Predictor, text: str, *, label: Any = None) -> Explanation:
    """Return how much each word of a text moves a classifier towards a label.

    The text is read as in prediction: words that are truncated have share 0. Windows and ensembles are explained as a
    whole.

    Args:
        predictor: The classifier.
        text: One text.
        label: The label to explain, as `predict` returns it or as text; None takes the one with the highest score.

    Raises:
        ValueError: The label is not one of the classifier's, the text is empty or has more than 32,768 tokens, or the
            network does not look its tokens up in one table.
    """
    ids = encode_documents(predictor.tokenizer, check_texts([text]))
    if len(ids[0]) > MOST_TOKENS:
        raise ValueError(
            f"the text has {len(ids[0]):,} tokens and every one keeps gradients; explain a part of at most "
            f"{MOST_TOKENS:,} tokens"
        )
    probabilities = predictor.probabilities(ids)[0]
    index = int(probabilities.argmax()) if label is None else _index_of(label, predictor.label_names)
    network = _Paths(predictor, ids[0], index)
    with network.ready():
        baseline, log_odds = network.log_odds([0.0, 1.0])
        for count in POINTS:
            shares = network.integrate(count)  # (tokens,)
            gap = abs(shares.sum() - (log_odds - baseline)) / max(abs(log_odds - baseline), 1.0)
            if gap <= TOLERANCE:
                break
    words = words_of(predictor.tokenizer, text, ids[0])
    return Explanation(
        label=predictor.labels[index],
        score=float(probabilities[index]),
        words=tuple((word, float(shares[tokens].sum())) for word, tokens in words),
        log_odds=log_odds,
        baseline=baseline,
        gap=float(gap),
    )


def words_of(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Return the words of a text, each with the indices of its tokens; special tokens around the text are left out.

    Args:
        tokenizer: The tokenizer that made the ids.
        text: The text.
        ids: Its tokens, special tokens included.
    """
    groups: list[list[int]] = []
    if isinstance(tokenizer, UlmfitTokenizer):
        groups = list(_marked_words(tokenizer, ids))
    elif not tokenizer.is_fast:
        special = set(tokenizer.all_special_ids)
        groups = [[place] for place, token in enumerate(ids) if token not in special]
    if groups:
        decoded = [str(tokenizer.decode([ids[i] for i in group], skip_special_tokens=True)) for group in groups]
        return [(word.strip(), group) for word, group in zip(decoded, groups, strict=True)]
    encoded = tokenizer(text, truncation=False, return_offsets_mapping=True, verbose=False)
    spans, words = encoded["offset_mapping"], encoded.word_ids()
    found = []
    for number, places in groupby(range(len(ids)), key=lambda place: words[place]):
        if number is not None:
            word = list(places)
            found.append((text[spans[word[0]][0] : spans[word[-1]][1]].strip(), word))
    return found


def _marked_words(tokenizer: UlmfitTokenizer, ids: Sequence[int]) -> Iterator[list[int]]:
    """Give the token indices of each word; a mark such as xxmaj belongs to the word behind it."""
    units: list[list[int]] = []
    for place, token in enumerate(ids):
        if token == tokenizer.bos_token_id:
            continue
        if not units or tokenizer.begins_word(token):
            units.append([])
        units[-1].append(place)
    followers = [FOLLOWERS.get(str(tokenizer.convert_ids_to_tokens(ids[unit[0]])), 0) for unit in units]
    first = 0
    while first < len(units):
        missing, end = followers[first], first + 1
        while missing and end < len(units):
            missing, end = missing - 1 + followers[end], end + 1
        yield [place for unit in units[first:end] for place in unit]
        first = end


def _index_of(label: Any, names: list[str]) -> int:
    name = clean_label(str(label).lower() if isinstance(label, bool) else str(label))
    if name not in names:
        raise ValueError(f"{label!r} is not a label of the classifier; it knows {', '.join(map(in_one_line, names))}")
    return names.index(name)


class _Paths:
    """A text's log-odds, and their gradients, along the straight path from padding to the text.

    Args:
        predictor: The classifiers.
        ids: The text's tokens.
        index: The label's index.
    """

    def __init__(self, predictor: Predictor, ids: list[int], index: int) -> None:
        self.predictor, self.index, self.length = predictor, index, len(ids)
        (batch,) = predictor.batches([ids])
        (places,) = predictor.batches([list(range(len(ids)))])  # the same batch, of the tokens' own indices
        self.batch, self.places, self.mask = batch, places["input_ids"], batch["attention_mask"].bool()
        self.calls: Calls = []
        self.alphas = torch.ones(1)
        tokenizer = predictor.tokenizer
        special = None if isinstance(tokenizer, UlmfitTokenizer) else special_tokens_of(tokenizer)
        kept = [tokenizer.bos_token_id] if special is None else [*special.prefix, *special.suffix]
        self.kept = torch.tensor(kept, device=predictor.accelerator.device)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Put the hooks on, and let a recurrent model keep gradients over all of the text."""
        with ExitStack() as stack:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # no backward pass in evaluation there
            for model in self.predictor.models:
                handle = model.get_input_embeddings().register_forward_hook(self._hook)
                stack.callback(handle.remove)
                for name in ("gradient_window", "bptt"):  # an AWD-LSTM's: gradients end at each chunk of bptt tokens
                    if hasattr(model.config, name):
                        stack.callback(setattr, model.config, name, getattr(model.config, name))
                        setattr(model.config, name, MOST_TOKENS)
            yield

    def _hook(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        start = module.weight[self.predictor.tokenizer.pad_token_id].detach().expand_as(output)
        way = torch.where(torch.isin(inputs[0], self.kept)[..., None], 0, output.detach() - start)
        alphas = self.alphas.to(output)[:, None, None]  # (rows, 1, 1)
        reached = (output.detach() - (1 - alphas) * way).requires_grad_()
        self.calls.append((reached, way))
        return reached

    def _pass(self, alphas: Sequence[float], reader: Any) -> tuple[Tensor, Tensor, Calls]:
        """Return log p and log (1 - p) of the label at points of the path, float64 (points,), and the calls."""
        rows, count = len(self.mask), len(alphas)
        self.alphas, self.calls = torch.tensor(alphas).repeat_interleave(rows), []
        inputs = {
            name: value.repeat(count, *[1] * (value.dim() - 1))
            for name, value in self.batch.items()
            if name not in ("labels", "row", "document")
        }
        if "document" in self.batch:
            inputs["document"] = torch.arange(count).repeat_interleave(rows)
        with torch.enable_grad():
            logits = reader(**to_device(inputs, self.predictor.accelerator)).logits.double()  # (points, num_labels)
        own = logits[:, self.index]
        if self.predictor.multi_label:
            log_p, log_not = (torch.nn.functional.logsigmoid(side) for side in (own, -own))
        else:
            others = torch.cat([logits[:, : self.index], logits[:, self.index + 1 :]], dim=1).logsumexp(1)
            total = logits.logsumexp(1)
            log_p, log_not = own - total, others - total
        return log_p, log_not, self.calls

    def _odds(self, alphas: Sequence[float]) -> tuple[Tensor, list[Calls]]:
        """Return the log-odds of the models' mean probability, (points,), and each model's calls."""
        passes = [self._pass(alphas, reader) for reader in self.predictor.readers]
        log_p = torch.stack([found[0] for found in passes]).logsumexp(0)
        log_not = torch.stack([found[1] for found in passes]).logsumexp(0)
        return log_p - log_not, [calls for _, _, calls in passes]

    def log_odds(self, alphas: Sequence[float]) -> list[float]:
        """Return the label's log-odds at points of the path."""
        return self._odds(alphas)[0].detach().tolist()

    def integrate(self, count: int) -> np.ndarray:
        """Return each token's share of the log-odds, float64 (tokens,), from so many points of the path."""
        points, weights = np.polynomial.legendre.leggauss(count)
        alphas, weights = (points + 1) / 2, weights / 2
        at_once = max(1, TOKENS_AT_ONCE // self.mask.numel())
        shares = torch.zeros(self.length, dtype=torch.float64)
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
            odds, calls = self._odds(alphas[part].tolist())
            leaves = [leaf for each in calls for leaf, _ in each]
            gradients = iter(torch.autograd.grad(odds.sum(), leaves))
            for model, each in zip(self.predictor.models, calls, strict=True):
                found = [(next(gradients) * way).sum(-1) for _, way in each]
                shares += self._by_token(torch.cat(found, dim=1).double().cpu(), weights[part], model)
        return shares.numpy()

    def _by_token(self, found: Tensor, weights: np.ndarray, model: Any) -> Tensor:
        """Sum (points * rows, width) over the points by their weights, and over what is read twice; (tokens,)."""
        rows, width = self.mask.shape
        if found.shape != (len(weights) * rows, width):
            raise ValueError(
                f"{type(model).__name__} looks its tokens up in another way than once in one table, so that its words "
                "cannot be explained; take a classifier on another model"
            )
        mean = (found.view(len(weights), rows, width) * torch.from_numpy(weights)[:, None, None]).sum(0)
        if getattr(model.config, "direction", "forward") == "backward":
            mean = mean.flip(1)  # it reads the text from its end
        return torch.zeros(self.length, dtype=torch.float64).index_add(0, self.places[self.mask], mean[self.mask])
