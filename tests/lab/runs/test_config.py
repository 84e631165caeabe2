from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sparsehyper.generators import Composed, Dense, Sparse
from sparsehyper.lab.runs import METHODS, DataConfig, Experiment, parse_method
from sparsehyper.training import TrainConfig


@pytest.mark.parametrize("method", METHODS)
def test_a_round_trip_through_json(with_method, method):
    experiment = with_method(method, augment=("crop",), base="learned")
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


def test_a_composed_generator_goes_through_json_too(experiment):
    experiment = replace(experiment, method=Composed({"*bias": Dense(), "*": Sparse()}))
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


def test_settings_left_out_take_their_defaults():
    experiment = Experiment.from_dict({"data": {}, "training": {"steps": 3}})
    assert experiment == Experiment(DataConfig(), TrainConfig(steps=3))


def test_the_seed_is_the_trainings(experiment):
    assert experiment.seed == 0
    other = experiment.with_seed(7)
    assert (other.seed, other.training.seed, other.data.seed) == (7, 7, 0)
    assert other.with_seed(0) == experiment


def test_methods_by_text():
    assert parse_method("sparse:growth=8") == Sparse(growth=8)
    assert parse_method("shared_trunk") == "shared_trunk"
    with pytest.raises(ValueError, match=r"`method` must be one of 'sparse', .*; got 'spares'"):
        parse_method("spares")
    with pytest.raises(ValueError, match="'experts' has no settings, got 'experts:growth=8'"):
        parse_method("experts:growth=8")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "expert"}, ValueError, "`method` must be a generator or one of .*'expert'"),
        ({"budget": 0}, ValueError, "`budget` must be greater than 0, got 0"),
        ({"budget": 4, "method": "experts"}, ValueError, "'experts' has one size, got 4"),
        ({"latent_dim": 1}, ValueError, "`latent_dim` must be at least 2, got 1"),
        ({"conditioner": "noise"}, ValueError, "`conditioner` must be one of .*got 'noise'"),
        ({"similarity": 1}, ValueError, "`similarity` must be less than 1, got 1"),
        ({"similarity": -0.5}, ValueError, "`similarity` must be at least 0, got -0.5"),
    ],
)
def test_invalid_settings(experiment, changes, error, message):
    with pytest.raises(error, match=message):
        replace(experiment, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"latent": 8}, ValueError, "has no setting 'latent'; it has: .*'latent_dim'"),
        ({"data": {"name": "digits"}}, ValueError, "data has no setting 'name'; .*'source'"),
        ({"method": {"kind": "dens"}}, ValueError, "`method` must be one of .*'dense'.*'dens'"),
    ],
)
def test_unknown_names(experiment, changes, error, message):
    with pytest.raises(error, match=message):
        Experiment.from_dict({**experiment.to_dict(), **changes})


def test_a_missing_part():
    with pytest.raises(ValueError, match="setting 'training' is missing"):
        Experiment.from_dict({"data": {}})


def test_data_settings():
    with pytest.raises(ValueError, match=r"`tasks` must be one of .*'splits'"):
        DataConfig(tasks="splits:2")
    with pytest.raises(ValueError, match=r"got 'bags,coats'; leave `tasks` out to use all"):
        DataConfig("photos", tasks="bags,coats")
    with pytest.raises(ValueError, match="`val_fraction` must be greater than 0, got 0"):
        DataConfig(val_fraction=0)
    with pytest.raises(ValueError, match="'digits' has one already, got 28"):
        DataConfig(image_size=28)
