"""Tasks whose embeddings follow from examples."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sparsehyper import (
    HyperNetwork,
    InputEncoder,
    Noise,
    Ridge,
    Sparse,
    SupportSet,
    TaskExamples,
    adapt_task,
    fit_embedding,
)
from sparsehyper._util.files import CheckpointError, read_sealed, sealed
from sparsehyper.saving import load_state
from sparsehyper.training import TrainConfig, evaluate, train

ANGLES = {f"{degrees}°": torch.tensor(degrees).deg2rad() for degrees in range(0, 360, 30)}


def samples(name, count=12):
    """Two clusters on opposite sides, in a direction that the task names."""
    y = torch.arange(count) % 2
    centre = torch.stack([ANGLES[name].cos(), ANGLES[name].sin()])
    return (2 * y[:, None] - 1) * centre + 0.3 * torch.randn(count, 2), y


def conditioner(tasks=tuple(ANGLES), draw=samples):
    encoder = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16))
    support = SupportSet(encoder, features=16, n_classes=2, dim=8)
    return TaskExamples(support, tasks, draw)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    known = [name for i, name in enumerate(ANGLES) if i % 3]
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(known))
    batches = [(*samples(name, 40), name) for name in known]
    config = TrainConfig(steps=300, lr=1e-2, eval_every=100, device="cpu")
    train(hnet, batches, batches, config, quiet=True)
    return hnet


def accuracy(hnet, name, task):
    x, y = samples(name, 400)
    return float((hnet.eval()(x, task=task).argmax(1) == y).float().mean())


def test_new_tasks_work_from_their_examples_without_a_step_of_training(trained):
    new = [name for i, name in enumerate(ANGLES) if i % 3 == 0]
    assert not set(new) & set(trained.task_names)
    right = [accuracy(trained, name, samples(name, 6)) for name in new]
    assert sum(right) / len(right) > 0.95, right
    kept = trained.conditioner.embeddings.clone()
    x, y = samples(new[0], 6)
    trained.add_task("new", (x, y))
    assert accuracy(trained, new[0], "new") > 0.9
    assert torch.equal(trained.embedding("new"), trained.embedding((x, y)))
    trained.remove_task("new")
    assert torch.equal(trained.conditioner.embeddings, kept)


def test_evaluation_has_kept_embeddings_and_training_others_each_time(trained):
    name = trained.task_names[0]
    assert accuracy(trained, name, name) > 0.95
    assert torch.equal(trained.embedding(name), trained.embedding(name))
    trained.train()
    first, second = trained.embedding(name), trained.embedding(name)
    assert not torch.equal(first, second)
    assert first.requires_grad
    trained.eval()
    # what is kept does not depend on the draws before
    before = trained.conditioner.embeddings.clone()
    torch.randn(7)
    trained.conditioner.renew()
    assert torch.equal(trained.conditioner.embeddings, before)


def test_embeddings_are_standardised_over_several_tasks():
    made = conditioner()
    z = made.train()(torch.arange(12))
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)
    made.renew()
    kept = made.embeddings
    torch.testing.assert_close(kept.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.var(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)
    assert int((kept - made.of(samples("0°", 400))).norm(dim=1).argmin()) == 0


def test_a_batch_of_one_task_is_standardised_with_others():
    drawn = []

    def draw(name):
        drawn.append(name)
        return samples(name, 400)

    made = conditioner(draw=draw)
    alone = made.train()(torch.tensor([3]))[0]
    assert drawn[0] == "90°"
    assert len(set(drawn)) == len(drawn) == 10
    made.renew()
    assert int((made.embeddings - alone).norm(dim=1).argmin()) == 3


def test_three_tasks_are_not_standardised():
    made = conditioner(["0°", "30°", "60°"])
    made.train()(torch.tensor([0, 0, 1, 2]))
    made.renew()
    assert torch.equal(made.mean, torch.zeros(8))
    assert torch.equal(made.variance, torch.ones(8))


def test_what_embeddings_are_standardised_by_changes_by_training_alone(trained):
    made = copy.deepcopy(trained.conditioner)
    made.train()(torch.arange(2))
    made.renew()
    before = made.embeddings.clone()
    made.remove(made.names[-1])
    with torch.autocast("cpu", torch.bfloat16):
        made.renew()
    torch.testing.assert_close(made.embeddings, before[:-1], rtol=0.1, atol=0.1)
    assert made.mean.dtype == torch.float32


def test_files_without_statistics_are_loaded(trained, tmp_path):
    directory = tmp_path / "model"
    trained.save(directory)
    state = load_file(directory / "model.safetensors")
    for name in ("conditioner.mean", "conditioner.variance"):
        del state[name]
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(trained.task_names, draw=None))
    hnet.conditioner.variance.fill_(4)
    load_state(hnet, state, directory / "model.safetensors")
    assert torch.equal(hnet.conditioner.variance, torch.ones(8))
    x, _ = samples("30°")
    assert torch.equal(hnet.eval()(x, task="30°"), trained.eval()(x, task="30°"))


def test_files_hold_embeddings_and_no_examples(trained, tmp_path):
    trained.save(tmp_path / "model")
    again = conditioner(trained.task_names, draw=None)
    loaded = HyperNetwork.load(tmp_path / "model", nn.Linear(2, 2), again)
    x, _ = samples("30°")
    for mode in (True, False):  # without draws, training has the kept embeddings too
        assert torch.equal(loaded.train(mode)(x, task="30°"), trained.eval()(x, task="30°"))
    loaded.conditioner.renew()  # nothing to renew them from
    assert torch.equal(loaded.embedding("30°"), trained.embedding("30°"))


def test_tables_of_other_lengths_are_loaded(trained):
    longer = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner([*trained.task_names, "more"]))
    state = trained.state_dict()
    longer.load_state_dict(state)
    assert longer.task_names == trained.task_names
    assert torch.equal(longer.conditioner.embeddings, trained.conditioner.embeddings)
    shorter = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["30°"]))
    shorter.load_state_dict(state)
    assert torch.equal(shorter.conditioner.embeddings, trained.conditioner.embeddings)


def test_adapting_to_more_classes_than_outputs(trained):
    hnet = copy.deepcopy(trained)
    x, _ = samples("0°", 60)
    y = torch.arange(60) % 3
    adapted = adapt_task(hnet, "more", (x + 3 * y[:, None], y), method="linear")
    assert float((adapted.model(x + 3 * y[:, None]).argmax(1) == y).float().mean()) > 0.8
    kept = hnet.conditioner.embeddings
    torch.testing.assert_close(kept[-1], kept[:-1].mean(0))


def test_an_embedding_can_be_fitted_too(trained):
    x, y = samples("0°", 60)
    fit = fit_embedding(trained, "fitted", (x, 1 - y))
    assert torch.equal(trained.embedding("fitted"), fit.embedding)
    assert accuracy(trained, "180°", "fitted") > 0.95  # the classes the other way round
    trained.remove_task("fitted")


def test_with_a_head_in_closed_form():
    target = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    hnet = HyperNetwork(target, Sparse(), conditioner(["30°", "60°"]), head=Ridge())
    batches = [(*samples(name, 40), name) for name in ("30°", "60°")]
    config = TrainConfig(steps=20, lr=1e-2, device="cpu")
    train(hnet, batches, batches, config, examples=batches, quiet=True)
    hnet.add_task("new", samples("180°", 20))
    hnet.solve_head("new", samples("180°", 20))
    assert accuracy(hnet, "180°", "new") > 0.95


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("median", TypeError, "must be examples of 'new', .* or 'mean', got a str"),
        (torch.full((8,), torch.nan), ValueError, "`init` must be finite numbers, got NaN"),
        (
            (torch.full((4, 2), torch.nan), torch.arange(4) % 2),
            ValueError,
            "examples of 'new' give an embedding that is not finite",
        ),
        (torch.zeros(3), ValueError, r"`init` must have shape \[8\], got \[3\]"),
        ((torch.zeros(4, 2), torch.arange(4)), ValueError, r"labels must be in 0..1, got 3"),
    ],
)
def test_what_makes_no_embedding_is_refused(init, error, message):
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner())
    with pytest.raises(error, match=message):
        hnet.add_task("new", init)
    assert "new" not in hnet.task_names


def test_examples_may_be_arrays():
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner()).eval()
    x, y = torch.randn(6, 2), torch.arange(6) % 2
    hnet.add_task("tensors", (x, y))
    hnet.add_task("arrays", (x.double().numpy(), y.numpy()))
    z = hnet.conditioner.embeddings
    torch.testing.assert_close(z[-1], z[-2])
    outputs = hnet(x, task=(x.numpy(), y.numpy()))
    torch.testing.assert_close(outputs, hnet(x, task="tensors"))


def test_a_support_set_and_a_function_are_needed():
    with pytest.raises(TypeError, match="`support` must be a SupportSet, got Linear"):
        TaskExamples(nn.Linear(2, 8), ["a"])
    with pytest.raises(TypeError, match="`draw` must be a function or None, got 3"):
        conditioner(draw=3)


@pytest.mark.parametrize("kind", ["input", "noise"])
def test_the_loop_trains_what_knows_no_tasks(kind):
    torch.manual_seed(0)
    made = InputEncoder(nn.Linear(2, 8), 8) if kind == "input" else Noise(8)
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), made)
    batch = (*samples("0°", 64), "right")
    config = TrainConfig(steps=60, lr=1e-2, device="cpu")
    result = train(hnet, [batch], [batch], config, names=["right"], quiet=True)
    assert result.best.accuracy > 0.95
    assert evaluate(hnet, [batch], names=["right"]).tasks == ("right",)
    with pytest.raises(ValueError, match="`names` must name the tasks"):
        train(hnet, [batch], [batch], config, quiet=True)


def test_a_task_that_was_added_keeps_its_embedding_in_training_too():
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["0°", "30°"]))
    x, y = samples("90°")
    hnet.conditioner.renew()
    hnet.add_task("new", (x, y))
    hnet.rename_task("0°", "east")
    assert hnet.training
    expected = hnet(x, task=(x, y))
    torch.testing.assert_close(hnet(x, task="new"), expected)
    torch.testing.assert_close(hnet.materialize("new")(x), expected)
    kept = hnet.conditioner.embeddings.clone()
    hnet.conditioner.renew()  # draws by the names that the tasks were made with
    torch.testing.assert_close(hnet.conditioner.embeddings, kept)
    hnet.remove_task("east")
    hnet.conditioner.renew()
    torch.testing.assert_close(hnet.conditioner.embeddings[-1], kept[-1])


def changed() -> HyperNetwork:
    """Tasks that are drawn by their first names, and others whose embeddings were given."""
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["0°", "30°", "60°", "90°", "120°"]))
    hnet.conditioner.renew()
    hnet.add_task("hats", samples("180°"))
    hnet.remove_task("30°")
    hnet.rename_task("60°", "sixty")
    hnet.conditioner.refine(0, torch.arange(8.0))
    hats = hnet.embedding("hats").clone()
    hnet.conditioner.renew()
    assert torch.equal(hnet.conditioner.embeddings[[0, 4]], torch.stack([torch.arange(8.0), hats]))
    return hnet


def assert_renewing_changes_nothing(table, expected):
    table.embeddings[1:4] = 7
    table.renew()
    torch.testing.assert_close(table.embeddings, expected)


@pytest.mark.parametrize("names", [["hats", "120°"], ["0°", "sixty", "90°", "120°", "hats"]])
def test_a_state_dict_brings_along_what_tasks_are_drawn_by(names):
    hnet, again = changed(), HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(names))
    again.load_state_dict(hnet.state_dict())
    assert_renewing_changes_nothing(again.conditioner, hnet.conditioner.embeddings)


def test_a_file_tells_what_tasks_are_drawn_by(tmp_path):
    hnet = changed()
    hnet.save(tmp_path / "model")
    table = conditioner(hnet.task_names)
    again = HyperNetwork.load(tmp_path / "model", nn.Linear(2, 2), table)
    assert_renewing_changes_nothing(again.conditioner, hnet.conditioner.embeddings)


@pytest.mark.parametrize("drawn_by", [["0°"], [None, 1, None, None, None], 3])
def test_a_damaged_list_of_what_tasks_are_drawn_by_is_refused(tmp_path, drawn_by):
    hnet = changed()
    hnet.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = read_sealed(file)
    config["conditioner_notes"]["drawn_by"] = drawn_by
    file.write_bytes(sealed(config).encode())
    with pytest.raises(CheckpointError, match=r"does not fit this model: .*(drawn_by|iterable)"):
        HyperNetwork.load(tmp_path / "model", nn.Linear(2, 2), conditioner(hnet.task_names))


def of_earlier_versions(hnet: HyperNetwork) -> dict[str, torch.Tensor]:
    """A state dict with the names of the tasks in place of the notes."""
    state, names = hnet.state_dict(), json.dumps(hnet.task_names)
    del state["notes"]
    state["task_names"] = torch.tensor(list(names.encode()), dtype=torch.uint8)
    return state


def test_a_state_dict_of_earlier_versions_has_tasks_drawn_by_its_names():
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["0°", "30°"]))
    hnet.conditioner.renew()
    again = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["30°", "0°"]))
    again.load_state_dict(of_earlier_versions(hnet))
    again.conditioner.renew()
    torch.testing.assert_close(again.conditioner.embeddings, hnet.conditioner.embeddings)


def test_tasks_that_were_added_to_a_state_dict_of_earlier_versions_are_not_drawn():
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["0°", "30°"]))
    hnet.conditioner.renew()
    hnet.add_task("given", samples("60°", 20))
    again = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["0°", "30°"]))
    again.load_state_dict(of_earlier_versions(hnet))
    again.conditioner.renew()
    torch.testing.assert_close(again.conditioner.embeddings, hnet.conditioner.embeddings)


@pytest.mark.parametrize("way", ["file", "state dict"])
def test_what_was_trained_is_standardised_though_it_was_not_kept_yet(tmp_path, way):
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner())
    hnet(torch.ones(1, 2), task="0°")  # in training
    if way == "file":
        hnet.save(tmp_path / "model")
        again = HyperNetwork.load(tmp_path / "model", nn.Linear(2, 2), conditioner())
    else:
        again = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner())
        again.load_state_dict(hnet.state_dict())
    again.conditioner.renew()
    kept = again.conditioner.embeddings
    torch.testing.assert_close(kept.var(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_the_conditioner_has_the_mode_of_the_target_and_its_networks_their_own(training):
    made = conditioner().train(not training)
    target = nn.Linear(2, 2).train(training)
    hnet = HyperNetwork(target, Sparse(), made)
    own = [made, made.support, made.support.each, made.support.whole]
    assert {part.training for part in (hnet, *own)} == {training}
    assert {part.training for part in made.support.encoder.modules()} == {not training}


def test_embeddings_that_were_never_kept_are_no_embeddings():
    hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), conditioner(["0°", "30°"])).eval()
    with pytest.raises(RuntimeError, match=r"`hnet\.conditioner\.renew\(\)`"):
        hnet(torch.ones(1, 2), task="0°")
