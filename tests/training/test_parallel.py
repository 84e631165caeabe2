"""Several processes train as one would, whichever gradient they exchange."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.pairs import in_two
from helpers.toy import NAMES, Model, Source
from helpers.two_processes import (
    CASES,
    both_ways,
    exchanged,
    fit,
    make,
    run_to,
    sharded,
    stopped,
    values_of,
)
from sparsehyper import HyperNetwork
from sparsehyper.training import Processes, TrainConfig, train

ONE = Processes(torch.device("cpu"))


def test_the_gradient_of_theta_gives_the_updates_of_plain_data_parallel(tmp_path):
    main, other = in_two(both_ways, tmp_path)
    for case, settings in CASES.items():
        by_theta, plain = main[case][0], main[case][-1]
        one = fit(case, ONE) if case not in ("head", "bf16") else plain
        start = values_of(make(**settings[1]))
        assert max(np.abs(one[name] - start[name]).max() for name in one) > 0.05, case
        for name, values in by_theta.items():
            close = {"atol": 3e-3 if case == "bf16" else 2e-5, "rtol": 0}
            np.testing.assert_allclose(values, plain[name], **close, err_msg=f"{case}: {name}")
            np.testing.assert_allclose(values, one[name], **close, err_msg=f"{case}: {name}")
            np.testing.assert_array_equal(values, other[case][0][name], f"{case}: {name}")


def test_the_cheaper_gradient_is_exchanged(tmp_path):
    hnet = make()
    trained = sum(p.numel() for p in hnet.parameters())
    for counted in in_two(exchanged, tmp_path):
        assert counted[1] == (hnet.target.numel + 3, False)  # and which of the three tasks
        assert counted[1][0] < 0.3 * trained
        assert counted[3][1] == (3 * hnet.target.numel >= trained)


def test_any_number_of_processes_goes_on_with_a_run(tmp_path):
    once = run_to(tmp_path / "once", 9, ONE)
    run_to(tmp_path / "run", 3, ONE)
    (values, held), (_, others) = in_two(sharded, tmp_path, tmp_path / "run")
    (whole,) = {sum(p.numel() for p in once.generator.parameters())}
    assert sum(map(max, (held, others))) == whole
    assert max(held | others) < 0.55 * whole
    best = HyperNetwork.load(tmp_path / "run" / "checkpoints" / "best")
    for name, tensor in values_of(best).items():
        np.testing.assert_array_equal(tensor, values[name])
    after = values_of(run_to(tmp_path / "run", 9, ONE))
    start = values_of(make())
    for name, tensor in values_of(once).items():
        np.testing.assert_allclose(after[name], tensor, atol=2e-5, err_msg=name)
    assert max(np.abs(after[name] - start[name]).max() for name in after) > 0.05


def test_a_sharded_training_that_stops_leaves_the_whole_model(tmp_path):
    start = values_of(make())
    for values in in_two(stopped, tmp_path):
        for name, tensor in values.items():
            np.testing.assert_array_equal(tensor, start[name], name)


def test_only_a_hypernetwork_can_be_sharded():
    config = TrainConfig(1, device="cpu", shard=True)
    with pytest.raises(ValueError, match=r"`shard` divides the generator .* got a Model"):
        train(Model(), Source(), Source(), config, names=NAMES, quiet=True)
