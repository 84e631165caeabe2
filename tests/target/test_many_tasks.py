from __future__ import annotations

import collections
import contextlib
import copy
import math
import pickle
import random
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from helpers.small_targets import Attention, Gain, Tied
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding

TASKS = 6

# Some targets have such buffers.
pytestmark = pytest.mark.filterwarnings("ignore:buffer .* changes in training")


class Dict(nn.Linear):
    def forward(self, x, *, factor):
        return {"h": super().forward(x) * factor, "nothing": None}


sizes: list[int] = []


class Runs(nn.Module):
    """Records, out of sight of the hypernetwork, the number of samples in each run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x, **kwargs):
        sizes.append(len(x))
        return self.module(x, **kwargs)


class ByValue(nn.Linear):
    """Data-dependent control flow, which vmap cannot run."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class Cube(torch.autograd.Function):
    """An autograd function without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Cubed(nn.Linear):
    def forward(self, x):
        return Cube.apply(super().forward(x))


class Counting(nn.Linear):
    """Changes a buffer that is not a batch-norm statistic."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Averaging(nn.Linear):
    """Replaces its buffer by a new tensor."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x)


class Last(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


class Padded(nn.Module):
    """Token embeddings with padding, some of them tied to the outputs."""

    def __init__(self, index: int, tied: bool = False) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(7, 4, padding_idx=index), nn.Linear(4, 7)
        with torch.no_grad():
            self.words.weight[index] = float(index == 0)  # as pretrained ones may have it
        if tied:
            self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.words(x))


class PaddedByHand(nn.Module):
    """Token embeddings with padding, and no attribute that tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Parameter(torch.randn(7, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(F.embedding(x, self.words, padding_idx=0))


# A target, the shape of a sample, and whether several tasks may share a run of it.
TARGETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (4,), True),
    "batch norm": (normed, (4,), True),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), (4,), True),
    "own parameter": (lambda: nn.Sequential(Gain(4), nn.PReLU()), (4,), True),
    "tied weights": (Tied, (3,), True),
    "padding": (lambda: Padded(-1), (3,), False),
    "padding, not zero": (lambda: Padded(0), (3,), False),
    "padding, tied weights": (lambda: Padded(2, tied=True), (3,), False),
    "padding by hand": (PaddedByHand, (3,), False),
    "dict": (lambda: Dict(4, 2), (4,), True),
    "convolutions": (convolutions, (2, 4, 4), False),
    "lstm": (lambda: Last(4, 3, batch_first=True), (5, 4), None),
    "attention": (lambda: Attention(4, 2, batch_first=True), (5, 4), None),
    "by value": (lambda: ByValue(4, 2), (4,), False),
    "without a rule": (lambda: Cubed(4, 2), (4,), False),
    "counting": (Counting, (4,), False),
}


def make(target: nn.Module, **settings) -> HyperNetwork:
    return HyperNetwork(target, Sparse(), TaskEmbedding(TASKS, 8), **settings)


def samples(kind: str, n: int) -> torch.Tensor:
    shape = TARGETS[kind][1]
    tokens = kind == "tied weights" or kind.startswith("padding")
    return torch.randint(7, (n, *shape)) if tokens else torch.randn(n, *shape)


def flat(out) -> torch.Tensor:
    return torch.cat([leaf.flatten(1) for leaf in tree_leaves(out) if leaf is not None], 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("counts", [[3] * 6, [2, 4, 2, 4, 2, 2], [1] * 6, [5, 1, 2, 3, 4, 6]])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_mixed_batch_equals_a_loop_over_its_tasks(kind, counts, training):
    if training and 1 in counts and kind == "batch norm":
        pytest.skip("PyTorch refuses to normalise one sample")
    hnet = make(TARGETS[kind][0]()).train(training)
    twin = copy.deepcopy(hnet)
    ids = torch.arange(TASKS).repeat_interleave(torch.tensor(counts))
    ids = ids[torch.randperm(len(ids))]
    x, kwargs = samples(kind, len(ids)), {"factor": 2.0} if kind == "dict" else {}
    for _ in range(2):
        out = flat(hnet(x, task=ids, **kwargs))
        looped = torch.empty_like(out)
        for task in range(TASKS):
            looped[ids == task] = flat(twin(x[ids == task], task=task, **kwargs))
        torch.testing.assert_close(out, looped, rtol=1e-4, atol=1e-5)
        cotangent = torch.randn_like(out)
        (out * cotangent).sum().backward()
        (looped * cotangent).sum().backward()
    for (name, one), two in zip(hnet.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, one), two in zip(hnet.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize(
    "kind", [kind for kind, (*_, shared) in TARGETS.items() if shared is not None]
)
def test_tasks_share_a_run_where_that_is_faster(kind):
    make_target, _, shared = TARGETS[kind]
    target = Runs(make_target())
    hnet = make(target)
    kwargs = {"factor": 2.0} if kind == "dict" else {}
    ids = torch.arange(TASKS).repeat(3)
    x = samples(kind, len(ids))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "buffer .* of the target changes in training")
        hnet(x, task=ids, **kwargs)  # the first finds out
        sizes.clear()
        hnet(x, task=ids, **kwargs)
    assert sizes == ([3] if shared else [3] * TASKS)


def test_convolutions_share_a_run_at_two_samples_a_task():
    hnet = make(Runs(convolutions()))
    ids = torch.arange(TASKS).repeat(2)
    for _ in range(2):
        sizes.clear()
        hnet(samples("convolutions", len(ids)), task=ids)
    assert sizes == [2]


def test_tasks_of_equal_counts_share_a_run_and_few_tasks_do_not():
    hnet = make(Runs(nn.Linear(4, 2)))
    ids = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5])
    for _ in range(2):
        sizes.clear()
        hnet(torch.randn(10, 4), task=ids)
    assert sizes == [1, 1, 2]


def test_the_first_batch_leaves_no_trace_of_the_trial():
    hnet = make(nn.Sequential(normed(), nn.Dropout(0.5)))
    twin = copy.deepcopy(hnet)
    x, ids = torch.randn(18, 4), torch.arange(TASKS).repeat(3)
    twin(x, task=ids)
    twin.load_state_dict(hnet.state_dict())
    for one in (hnet, twin):  # the twin's second batch
        torch.manual_seed(0)
        one.out = one(x, task=ids)
    assert torch.equal(hnet.out, twin.out)
    torch.testing.assert_close(hnet.state_dict(), twin.state_dict(), rtol=0, atol=0)
    norm = hnet.target.module[0][1]
    assert norm.num_batches_tracked.tolist() == [1] * TASKS


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_padding_stays_zero_in_any_precision(dtype):
    hnet = make(Padded(-1)).to(dtype)
    hnet(torch.tensor([[0, 6, 3]]), task=0).sum().backward()
    assert (hnet.generate(0)["words.weight"][-1] == 0).all()
    assert all(p.grad is not None for p in hnet.generator.parameters())


@pytest.mark.parametrize("wanted", ["no gradient", "no gradient of the padding", "all"])
def test_padding_is_a_reason_for_more_runs_only_where_its_gradient_is_generated(wanted):
    hnet = make(
        Runs(Padded(0)), generate="*" if wanted != "no gradient of the padding" else "*out*"
    )
    with torch.set_grad_enabled(wanted != "no gradient"):
        for _ in range(2):
            sizes.clear()
            hnet(samples("padding", 3 * TASKS), task=torch.arange(TASKS).repeat(3))
    assert sizes == ([3] * TASKS if wanted == "all" else [3])


def test_checkpointing_does_not_see_the_trial():
    hnet, x, ids = make(TARGETS["mlp"][0]()), torch.randn(12, 4), torch.arange(12) % TASKS
    expected = hnet(x, task=ids)
    twin = make(TARGETS["mlp"][0]())
    twin.load_state_dict(hnet.state_dict())
    out = checkpoint(twin, x, task=ids, use_reentrant=False)
    torch.testing.assert_close(out, expected)
    out.sum().backward()


def untracked() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False))


@pytest.mark.parametrize(
    ("build", "norm_stats", "training"),
    [
        (normed, "per_task", True),
        (normed, "batch", True),
        (normed, "batch", False),
        (untracked, "per_task", False),
    ],
)
def test_a_lone_sample_of_a_task_for_a_batch_norm_is_told(build, norm_stats, training):
    hnet = make(build(), norm_stats=norm_stats).train(training)
    wrong = (
        "as all do in training and those without running statistics always, cannot normalise the "
        "single sample that a task has in this batch; give"
    )
    with pytest.raises(ValueError, match=wrong):
        hnet(torch.randn(5, 4), task=torch.tensor([0, 0, 1, 2, 2]))


@pytest.mark.parametrize("counts", [[2, 2], [3, 1]])
def test_a_recurrent_layer_alone_takes_one_task_at_a_time(counts):
    hnet = make(nn.LSTM(4, 3, num_layers=2, batch_first=True))
    assert hnet(torch.randn(2, 5, 4), task=0)[1][0].shape == (2, 2, 3)
    ids = torch.arange(2).repeat_interleave(torch.tensor(counts))
    with pytest.raises(ValueError, match=r"an nn\.LSTM as the target .* wrap it in a module"):
        hnet(torch.randn(4, 5, 4), task=ids)


class WithState(nn.Module):
    """A recurrent layer, and its state as `change` returns it."""

    def __init__(self, change) -> None:
        super().__init__()
        self.layer, self.change = nn.LSTM(4, 3, num_layers=2, batch_first=True), change

    def forward(self, x):
        out, (state, _) = self.layer(x)
        return out, self.change(state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_a_state_with_the_layers_first_is_told_though_they_are_as_many_as_samples(count, training):
    x, ids = torch.randn(3 * count, 2, 4), torch.arange(3).repeat(count)
    hnet = make(WithState(lambda state: state))
    with torch.set_grad_enabled(training):
        wrong = rf"got shape \[2, {count}, 3\] .*recurrent layer: `state\.transpose\(0, 1\)`"
        with pytest.raises(ValueError, match=wrong):
            hnet(x, task=ids)
        hnet = make(WithState(lambda state: state.transpose(0, 1)))
        together = hnet(x, task=ids)
        for task in range(3):
            own = [each[ids == task] for each in together]
            torch.testing.assert_close(tuple(own), hnet(x[ids == task], task=task))


class Pooled(nn.Linear):
    """The mean of the steps of a sequence, of which each sample has its own number."""

    def forward(self, x, lengths):
        lengths = lengths["n"] if isinstance(lengths, dict) else lengths
        steps = [own[: int(n)].mean(0) for own, n in zip(x, lengths, strict=True)]
        return super().forward(torch.stack(steps))


LENGTHS = [1, 2, 3, 4, 5, 6]


def test_arrays_are_divided_among_the_tasks_as_tensors_are():
    hnet = make(Pooled(4, 2))
    x, ids = torch.randn(TASKS, 7, 4), torch.tensor([0, 1, 0, 1, 2, 2])
    given = np.array(LENGTHS)
    out = hnet(x, given, task=ids)
    alone = [hnet(x[[i]], given[[i]], task=int(ids[i])) for i in range(TASKS)]
    torch.testing.assert_close(out, torch.cat(alone))
    torch.testing.assert_close(hnet(x, lengths={"n": given}, task=ids), out)


@pytest.mark.parametrize("tasks", [2, TASKS])
@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (LENGTHS, "list"),
        (tuple(LENGTHS), "tuple"),
        ({"n": LENGTHS}, "list"),
        (list("abcdef"), "list"),
        ([[1], [2, 3], [], [1], [1], [1]], "list"),
    ],
)
def test_a_list_with_an_entry_for_each_sample_is_refused(given, kind, tasks):
    hnet, x, ids = make(Pooled(4, 2)), torch.randn(TASKS, 7, 4), torch.arange(TASKS) % tasks
    for call in (lambda: hnet(x, given, task=ids), lambda: hnet(x, lengths=given, task=ids)):
        with pytest.raises(
            ValueError, match=rf"`lengths` has a {kind} of 6 entries.* give a tenso"
        ):
            call()


def test_lists_that_are_none_of_samples_are_left_alone():
    class Resized(nn.Linear):
        def forward(self, x, size, weights=(1, 2)):
            return super().forward(x).expand(len(x), *size) * sum(weights)

    hnet, x = make(Resized(4, 2)), torch.randn(TASKS, 4)
    assert hnet(x, [2], task=torch.arange(TASKS)).shape == (TASKS, 2)
    assert hnet(x, (2,), (1,) * TASKS, task=torch.arange(TASKS)).shape == (TASKS, 2)
    one = torch.zeros(TASKS, dtype=torch.int64)
    assert make(Pooled(4, 2))(torch.randn(TASKS, 7, 4), LENGTHS, task=one).shape == (TASKS, 2)


def test_an_array_of_texts_is_a_list():
    given = np.array(["a", "b"])
    with pytest.raises(ValueError, match="`lengths` has a list of 2 entries"):
        make(Pooled(4, 2))(torch.randn(2, 7, 4), given, task=torch.arange(2))


def test_sizes_and_what_is_not_declared_are_no_lists_of_samples():
    class Resized(nn.Linear):
        def forward(self, x, size=(2, 4), **more):
            return super().forward(x).view(len(x), *size)

    hnet, x = make(Resized(4, 8)), torch.randn(2, 4)
    assert hnet(x, size=(4, 2), task=[0, 1]).shape == (2, 4, 2)
    assert hnet(x, ids=["p", "q"], task=[0, 1]).shape == (2, 2, 4)
    assert hnet(x, ids=np.array(["p", "q"]), task=[0, 0]).shape == (2, 2, 4)


def test_the_outputs_of_a_recurrent_layer_s_follower_are_no_state():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 5, 2, batch_first=True), nn.Linear(5, 5)

        def forward(self, x):
            return self.out(self.rnn(x)[0])

    hnet, x, ids = make(Steps()), torch.randn(4, 2, 3), torch.tensor([0, 1, 0, 1])
    loop = torch.cat([hnet(x[i : i + 1], task=int(ids[i])) for i in range(4)])
    torch.testing.assert_close(hnet(x, task=ids), loop)


def test_dropout_differs_between_tasks_that_share_a_run():
    hnet = make(nn.Sequential(nn.Linear(4, 100), nn.Dropout(0.5)))
    out = hnet(torch.randn(12, 4), task=torch.arange(TASKS).repeat(2))
    dropped = (out == 0).float()
    assert dropped.mean() == pytest.approx(0.5, abs=0.1)
    assert len(dropped.unique(dim=0)) == 12


def test_shared_statistics_are_those_of_every_task_in_turn():
    hnet = make(normed(), norm_stats="shared")
    hnet(torch.randn(18, 4), task=torch.arange(TASKS).repeat(3))
    assert hnet.target.module[1].num_batches_tracked == TASKS


def test_an_error_of_the_target_is_told_as_its_own():
    hnet = make(nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(3x5 and 4x2\)"):
        hnet(torch.randn(18, 5), task=torch.arange(TASKS).repeat(3))
    assert hnet(torch.randn(18, 4), task=torch.arange(TASKS).repeat(3)).shape == (18, 2)


def test_in_inference_mode_too():
    ids, x = torch.arange(TASKS).repeat(3), torch.randn(18, 4)
    with torch.inference_mode():
        hnet = make(normed()).eval()
        out = hnet(x, task=ids)
        for task in range(TASKS):
            torch.testing.assert_close(out[ids == task], hnet(x[ids == task], task=task))


# From the compiler, which makes an instance of every autograd function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_equals_eager():
    torch._dynamo.reset()
    hnet = make(normed()).eval()
    ids, x = torch.arange(TASKS).repeat(3), torch.randn(18, 4)
    compiled = torch.compile(hnet, backend="aot_eager")
    torch.testing.assert_close(compiled(x, task=ids), hnet(x, task=ids))


def mixed(module, *args, calls=1):
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(TASKS, dim=4))
    outputs = [hnet(*args, task=torch.arange(TASKS)) for _ in range(calls)]
    return hnet, outputs


class Flagged(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x, flag):
        if flag:
            self.runs.add_(1)
        return super().forward(x)


def test_what_is_found_out_holds_for_equal_arguments_only():
    hnet, _ = mixed(Flagged(), torch.randn(TASKS, 3), False)
    hnet(torch.randn(TASKS, 3), True, task=torch.arange(TASKS))
    assert hnet.target.module.runs == TASKS


class Keeping(nn.Linear):
    calls = 0

    def forward(self, x):
        y = super().forward(x)
        self.calls, self.size = self.calls + 1, y.pow(2).mean()
        return y


def test_a_target_that_keeps_something_of_a_run_has_one_for_each_task():
    hnet, _ = mixed(Keeping(3, 2), torch.randn(TASKS, 3))
    assert hnet.target.module.calls == TASKS
    assert hnet.target.module.size.item() > 0


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 2))

    def forward(self):
        return self.weight


@pytest.mark.parametrize("tasks", [2, TASKS])
def test_a_target_without_arguments(tasks):
    hnet = HyperNetwork(Constant(), Sparse(), TaskEmbedding(TASKS, dim=4))
    assert hnet(task=torch.arange(tasks)).shape == (tasks, 2)


def test_a_hypernetwork_can_be_pickled_after_a_mixed_batch():
    hnet, (y,) = mixed(nn.Linear(3, 2), torch.ones(TASKS, 3))
    again = pickle.loads(pickle.dumps(hnet))
    torch.testing.assert_close(again(torch.ones(TASKS, 3), task=torch.arange(TASKS)), y)


def test_a_buffer_put_in_the_place_of_another_is_left_as_a_loop_leaves_it():
    hnet = make(Averaging())
    twin, x = copy.deepcopy(hnet), torch.randn(TASKS, 4)
    hnet(x, task=torch.arange(TASKS))
    for task in range(TASKS):
        twin(x[task : task + 1], task=task)
    torch.testing.assert_close(hnet.target.module.mean, twin.target.module.mean)
    copy.deepcopy(hnet).state_dict()


class Cached(nn.Linear):
    """Keeps a tensor in a container of some kind."""

    def __init__(self, container: str) -> None:
        super().__init__(4, 2)
        self.kept = {
            "dict": {},
            "list": [],
            "nested": {"inner": [()]},
            "object": types.SimpleNamespace(mask=None),
            "deque": collections.deque(),
        }[container]
        self.container = container

    def forward(self, x):
        mask = torch.ones_like(x[:1])
        if self.container == "dict":
            mask = self.kept.setdefault(x.shape[-1], mask)
        elif self.container == "nested":
            self.kept["inner"][0] = (mask,)
        elif self.container == "object":
            self.kept.mask = mask
        else:
            self.kept.append(mask)
        return super().forward(x * mask)


@pytest.mark.parametrize("container", ["dict", "list", "nested", "object", "deque"])
def test_a_target_that_keeps_tensors_in_containers_goes_on_working(container):
    hnet = make(Cached(container)).eval()
    x = torch.randn(12, 4)
    out = hnet(x, task=torch.arange(12) % TASKS)
    for task in range(TASKS):
        own = torch.arange(12) % TASKS == task
        torch.testing.assert_close(hnet(x[own], task=task), out[own])
        torch.testing.assert_close(hnet.materialize(task)(x[own]), out[own])
    copy.deepcopy(hnet)
    kept = hnet.target.module.kept
    assert container != "list" or len(kept) == 2 * TASKS  # one for each task, twice


def test_losses_that_a_target_collects_are_those_of_every_task():
    class Collecting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.losses = []

        def forward(self, x):
            out = super().forward(x)
            self.losses.append(out.square().mean())
            return out

    hnet, x = make(Collecting()), torch.randn(12, 4)
    out = hnet(x, task=torch.arange(12) % TASKS)
    losses = torch.stack(hnet.target.module.losses)
    expected = out.view(2, TASKS, 2).square().mean((0, 2))
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()


@pytest.mark.parametrize("tasks", [3, TASKS])
def test_hooks_see_every_task_s_activations_and_gradients(tasks):
    hnet = make(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    x, ids = torch.randn(12, 4, requires_grad=True), torch.arange(12) % tasks
    hnet(x, task=ids)  # tasks share a run
    layer, seen, gradients = hnet.target.module[0], [], []
    hooks = [
        layer.register_forward_hook(lambda m, i, o: seen.append(o.detach().sum())),
        layer.register_full_backward_hook(lambda m, i, o: gradients.append(o[0].sum())),
    ]
    hnet(x, task=ids).sum().backward()
    assert len(seen) == len(gradients) == tasks
    assert all(math.isfinite(float(value)) for value in (*seen, *gradients))
    for hook in hooks:
        hook.remove()
    total = []
    with nn.modules.module.register_module_forward_hook(lambda m, i, o: total.append(type(m))):
        hnet(x, task=ids)
    assert total.count(nn.ReLU) == tasks


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_tasks_draw_for_themselves_from_every_random_source(draw):
    class Skips(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (draw() < 0.5)

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    hnet, alike = make(Skips(4, 2)), 0
    for _ in range(20):
        kept = hnet(torch.randn(12, 4), task=torch.arange(12) % TASKS).abs().sum(1) > 0
        alike += len(set(kept.tolist())) == 1
    assert alike < 5


def test_a_trial_leaves_every_random_source_as_it_was():
    hnet = make(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)))
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    hnet(torch.randn(12, 4), task=torch.arange(12) % TASKS)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_a_target_that_begins_to_keep_something_later_is_run_for_each_task_from_then_on():
    class Later(nn.Linear):
        runs = 0

        def forward(self, x):
            out = super().forward(x)
            if self.keeping:
                self.last = out
            return out

    hnet, x = make(Later(4, 2)), torch.randn(12, 4)
    module, ids = hnet.target.module, torch.arange(12) % TASKS
    module.keeping = False
    expected = hnet(x, task=ids)
    module.keeping = True
    torch.testing.assert_close(hnet(x, task=ids), expected)
    torch.testing.assert_close(module.last, expected[ids == TASKS - 1])


collected: list[torch.Tensor] = []


class Elsewhere(nn.Linear):
    """Keeps its results where copies do not reach them."""

    seen: dict[str, torch.Tensor] = {}  # noqa: RUF012

    def __init__(self, where: str) -> None:
        super().__init__(4, 2)
        self.where = where
        closed: list[torch.Tensor] = []
        self.note, self.closed = closed.append, lambda: closed

    def forward(self, x):
        out = super().forward(x)
        value = out.square().mean()
        if self.where == "module":
            collected.append(value)
        elif self.where == "class":
            self.seen["last"] = value
        else:
            self.note(value)
        return out


@pytest.mark.parametrize("where", ["module", "class", "closure"])
def test_what_a_target_keeps_elsewhere_is_every_task_s_own(where):
    collected.clear()
    hnet, x = make(Elsewhere(where)), torch.randn(12, 4)
    for _ in range(2):
        out = hnet(x, task=torch.arange(12) % TASKS)
    expected = out.view(2, TASKS, 2).square().mean((0, 2))
    if where == "class":
        torch.testing.assert_close(hnet.target.module.seen["last"], expected[-1])
    else:
        kept = collected if where == "module" else hnet.target.module.closed()
        assert len(kept) == 2 * TASKS
        torch.testing.assert_close(torch.stack(kept[TASKS:]), expected)


@pytest.fixture
def no_waiting():
    """Context in which anything that waits for the GPU is an error."""

    @contextlib.contextmanager
    def context():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return context


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mlp", "batch norm", "convolutions"])
@pytest.mark.parametrize("tasks", [1, 2, 3, TASKS])
def test_on_a_gpu_a_step_waits_for_nothing_and_three_tasks_share_a_run(kind, tasks, no_waiting):
    hnet = make(Runs(TARGETS[kind][0]())).cuda()
    ids = torch.arange(3 * TASKS) % tasks
    x = samples(kind, len(ids)).cuda()
    for task in (ids, 1):
        for _ in range(2):  # the first finds out
            hnet(x, task=task).sum().backward()
        sizes.clear()
        with no_waiting():
            hnet(x, task=task).sum().backward()
        count = tasks if task is ids else 1
        assert sizes == [3 * TASKS // count] * (count if count < 3 else 1)


@pytest.mark.gpu
def test_task_numbers_on_a_gpu_and_on_the_cpu():
    hnet, ids = make(normed()).cuda(), torch.arange(2 * TASKS) % TASKS
    x = torch.randn(len(ids), 4, device="cuda")
    one = hnet.eval()(x, task=ids)
    torch.testing.assert_close(hnet(x, task=ids.cuda()), one)
    torch.testing.assert_close(hnet(x, task=hnet.group(ids, len(x))), one)


def test_a_batch_without_samples_is_none_of_any_task():
    hnet = make(normed())
    before = copy.deepcopy(hnet.state_dict())
    assert hnet(torch.randn(0, 4), task=torch.tensor([], dtype=torch.int64)).shape == (0, 2)
    torch.testing.assert_close(hnet.state_dict(), before, rtol=0, atol=0)


def shared_part() -> nn.Module:
    """A target of which tasks have a head of their own."""
    target = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    target[0].requires_grad_(False)
    return target


@pytest.mark.parametrize("after_a_call", [False, True])
@pytest.mark.parametrize("build", [TARGETS["mlp"][0], shared_part])
def test_a_mixed_batch_within_transforms(build, after_a_call):
    hnet, x, ids = make(build()).double(), torch.randn(12, 4).double(), torch.arange(12) % TASKS
    trained = {name: p for name, p in hnet.named_parameters() if p.requires_grad}
    params = {name: p.detach() for name, p in trained.items()}
    tangents = {name: torch.randn_like(p) for name, p in params.items()}

    def run(params, x):
        return functional_call(hnet, params, (x,), {"task": ids}).square().sum()

    if after_a_call:
        hnet(x, task=ids)
        with torch.no_grad():
            hnet(x, task=ids)
    slopes = grad(run)(params, x)
    derivative = jvp(lambda params: run(params, x), (params,), (tangents,))[1]
    many = vmap(run, (None, 0))(params, torch.stack([x, 2 * x]))
    looped = torch.stack([hnet(x[[i]], task=int(ids[i])).square().sum() for i in range(12)]).sum()
    expected = torch.autograd.grad(looped, list(trained.values()))
    torch.testing.assert_close(tuple(slopes.values()), expected)
    total = sum((slopes[name] * tangents[name]).sum() for name in params)
    torch.testing.assert_close(derivative, total)
    torch.testing.assert_close(many, torch.stack([run(params, x), run(params, 2 * x)]))


@pytest.mark.parametrize("build", [lambda: Runs(TARGETS["mlp"][0]()), lambda: Runs(shared_part())])
def test_a_transform_decides_nothing_for_later_batches(build):
    hnet, x, ids = make(build()), torch.randn(12, 4), torch.arange(12) % TASKS
    vmap(lambda x: hnet(x, task=ids))(torch.stack([x, x]))
    hnet(x, task=ids)
    sizes.clear()
    hnet(x, task=ids)
    assert sizes == [12] or sizes == [2]  # vmap sees the samples of one task
