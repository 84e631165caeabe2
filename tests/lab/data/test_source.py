from dataclasses import replace

import pytest
import torch

from sparsehyper.lab.data import Images, Source, join_sources, make_tasks


def _images(n=3, shape=(1, 4, 4), labels=None):
    labels = torch.arange(n) % 2 if labels is None else torch.tensor(labels)
    return Images(torch.zeros(n, *shape, dtype=torch.uint8), labels)


def test_shape():
    assert Source("s", ("a", "b"), _images(), _images(2)).image_shape == (1, 4, 4)


@pytest.mark.parametrize("label", [-1, 2])
def test_label_out_of_range_names_value_and_row(label):
    with pytest.raises(ValueError, match=rf"`test` must be in 0..1, got {label} in row 2"):
        Source("s", ("a", "b"), _images(), _images(labels=[0, 1, label]))


def test_repeated_class_names():
    with pytest.raises(ValueError, match=r"`classes` must be unique, got \['a', 'a'\]"):
        Source("s", ("a", "a"), _images(), _images())


def test_unequal_shapes():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4, 4\) and \(3, 4, 4\)"):
        Source("s", ("a", "b"), _images(), _images(shape=(3, 4, 4)))


def test_wrong_dtypes():
    floats = Images(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"`train` must have uint8 .* got torch.float32"):
        Source("s", ("a", "b"), floats, _images())


def test_no_images_or_unequal_lengths():
    with pytest.raises(ValueError, match=r"n at least 1, got \[0, 1, 4, 4\] and \[0\]"):
        Source("s", ("a", "b"), _images(0), _images())
    unequal = Images(_images(3).pixels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"got \[3, 1, 4, 4\] and \[2\]"):
        Source("s", ("a", "b"), unequal, _images())


def _of(name, shape, classes=("a", "b")):
    train, test = torch.randint(1, 256, (2, 6, *shape), dtype=torch.uint8)
    labels = torch.arange(6) % len(classes)
    return Source(name, classes, Images(train, labels), Images(test, labels))


def test_joined_sources_share_a_shape_and_keep_their_classes_apart():
    grey, colour = _of("grey", (1, 4, 4)), _of("colour", (3, 6, 8), ("x", "y", "z"))
    both = join_sources([grey, colour])
    assert both.image_shape == (3, 6, 8)
    assert both.classes == ("grey a", "grey b", "colour x", "colour y", "colour z")
    assert both.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 2, 3, 4, 2, 3, 4]
    padded = both.test.pixels[:6]
    for channel in range(3):
        assert padded[:, channel, 1:5, 2:6].equal(grey.test.pixels[:, 0])
    assert padded.sum() == 3 * grey.test.pixels.sum()  # elsewhere it is black
    assert both.test.pixels[6:].equal(colour.test.pixels)
    tasks = make_tasks(both, val_fraction=0.1)
    assert tasks.names == ("grey", "colour")
    assert tasks.classes == (("grey a", "grey b"), ("colour x", "colour y", "colour z"))
    assert tasks.test.labels(1).tolist() == [0, 1, 2, 0, 1, 2]


def test_joined_sources_keep_their_validation_images():
    one, other = _of("one", (1, 4, 4)), _of("other", (1, 6, 6))
    one, other = (replace(source, val=source.test) for source in (one, other))
    both = join_sources([one, other])
    assert both.val.labels.tolist() == both.test.labels.tolist()
    with pytest.raises(ValueError, match="must all have validation images, or none of them"):
        join_sources([one, replace(other, val=None)])


def test_joining_one_source_or_one_twice_is_refused():
    one = _of("one", (1, 4, 4))
    for sources in ([one], [one, one]):
        with pytest.raises(ValueError, match=r"at least 2 different sources, got .'one'"):
            join_sources(sources)
