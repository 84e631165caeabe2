import pytest
import torch

from sparsehyper.data import Images, Source


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
