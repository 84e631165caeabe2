from __future__ import annotations

import accelerate
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.training import DataCollatorWithTask

TASKS = ["shoes", "bags", "hats"]


def make(target: nn.Module, **settings) -> HyperNetwork:
    torch.manual_seed(0)
    return HyperNetwork(target, Sparse(), TaskEmbedding(TASKS, dim=8), **settings)


def bert() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
        hidden_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def sentences(count: int, *, mixed: bool) -> list[dict]:
    """Sentences of 4 words; whether word 1 or word 2 comes first is the label, by the task."""
    random = torch.Generator().manual_seed(0)
    samples = []
    for i in range(count):
        ids = torch.randint(1, 3, [4], generator=random)
        task = TASKS[i % 3] if mixed else "bags"
        label = int(ids[0] == 1) if task == "shoes" else int(ids[0] == 2)
        samples.append({"input_ids": ids, "labels": torch.tensor(label), "task": task})
    return samples


def test_the_task_of_every_sample_is_kept_as_a_number():
    inner = lambda samples: {"keys": [sorted(sample) for sample in samples]}  # noqa: E731
    collator = DataCollatorWithTask(TASKS, inner, column="shop")
    batch = collator([{"x": 1, "shop": "hats"}, {"x": 2, "shop": 0}])
    assert batch.pop("task").tolist() == [2, 0]
    assert batch == {"keys": [["x"], ["x"]]}


@pytest.mark.parametrize(
    ("samples", "collator", "error", "message"),
    [
        ([{"x": 1}], dict, KeyError, "no column 'task'.* it has: 'x'; .*remove_unused_columns"),
        (
            [{"task": "ties"}],
            dict,
            KeyError,
            "unknown `task` 'ties'; the tasks are: 'shoes', 'bags'",
        ),
        ([{"task": 3}], dict, IndexError, r"must be in \[0, 3\), got 3"),
        ([{"task": -1}], dict, IndexError, r"must be in \[0, 3\), got -1"),
        ([{"task": 0}], list, TypeError, r"`collator` must be a function that returns a dict"),
    ],
)
def test_samples_without_a_known_task_are_refused(samples, collator, error, message):
    with pytest.raises(error, match=message):
        DataCollatorWithTask(TASKS, collator)(samples)


def train(hnet: HyperNetwork, samples: list[dict], folder, **settings) -> dict[str, float]:
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=60,
        per_device_train_batch_size=12,
        per_device_eval_batch_size=12,
        learning_rate=0.02,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        hnet,
        arguments,
        data_collator=DataCollatorWithTask(hnet.task_names),
        train_dataset=samples,
        eval_dataset=samples,
        **settings,
    )
    trainer.train()
    return trainer.evaluate()


def loss_of_samples(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("mixed", "generate", "settings"),
    [
        (False, "bert.pooler.*", {}),
        (True, "classifier.*", {}),  # runs once, so that the target's own loss is right
        (True, ["classifier.*", "*LayerNorm.bias"], {"compute_loss_func": loss_of_samples}),
    ],
)
def test_hugging_face_s_trainer_trains_it(tmp_path, mixed, generate, settings):
    hnet = make(bert(), generate=generate)
    result = train(hnet, sentences(60, mixed=mixed), tmp_path, **settings)
    assert result["eval_loss"] < 0.2


def test_a_loss_over_several_tasks_is_refused_with_what_to_do():
    batch = DataCollatorWithTask(TASKS)(sentences(6, mixed=True))
    with pytest.raises(ValueError, match=r"got shape \[\] for 2 samples; .*`compute_loss_func`"):
        make(bert(), generate="*LayerNorm*")(**batch)


def test_losses_of_the_samples_come_back_in_their_order():
    class Losses(nn.Linear):
        def forward(self, x, y):
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, y, reduction="none"), "logits": logits}

    hnet = make(Losses(4, 2))
    x, y, task = torch.randn(7, 4), torch.arange(7) % 2, torch.tensor([2, 0, 0, 1, 2, 2, 0])
    out = hnet(x, y=y, task=task)
    for i, number in enumerate(task.tolist()):
        alone = hnet(x[i : i + 1], y=y[i : i + 1], task=number)
        torch.testing.assert_close(out["loss"][i : i + 1], alone["loss"])


@pytest.mark.parametrize("takes", [True, False])
def test_the_trainer_is_told_what_the_target_takes(takes):
    class Takes(nn.Linear):
        def forward(self, x, **kwargs):
            return super().forward(x)

    assert make(Takes(3, 2) if takes else nn.Linear(3, 2)).accepts_loss_kwargs is takes
    said = Takes(3, 2)
    said.accepts_loss_kwargs = not takes
    assert make(said).accepts_loss_kwargs is not takes


def test_accelerate_trains_it():
    accelerator = accelerate.Accelerator(cpu=True)
    hnet = make(bert(), generate="classifier.*")
    collator = DataCollatorWithTask(hnet.task_names)
    loader = DataLoader(sentences(60, mixed=True), 12, collate_fn=collator)
    model, optimizer, loader = accelerator.prepare(
        hnet, torch.optim.Adam(hnet.parameters(), 0.02), loader
    )
    losses = []
    for _ in range(12):
        for batch in loader:
            labels = batch.pop("labels")
            losses.append(F.cross_entropy(model(**batch).logits, labels))
            accelerator.backward(losses[-1])
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.2 < losses[0]
