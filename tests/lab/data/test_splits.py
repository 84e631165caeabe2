import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehyper.lab.data.splits import digests, hold_out


def test_digests_tell_images_apart_by_their_pixels_only():
    pixels = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8)
    pixels[7] = pixels[31]
    digest = digests(pixels)
    assert digest[7] == digest[31]
    assert len(np.unique(digest)) == 49
    np.testing.assert_array_equal(digests(pixels.flip(0)), digest[::-1])
    # A view that is not contiguous has the same hash as its copy.
    np.testing.assert_array_equal(
        digests(pixels.transpose(2, 3)[::2]), digests(pixels.transpose(2, 3)[::2].contiguous())
    )


def test_digests_are_the_same_on_every_machine():
    assert digests(torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)).tolist() == [
        11009417550903347706
    ]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=80),
    st.sampled_from([0.1, 0.2, 0.5, 0.9]),
    st.integers(0, 2**63 - 1),
)
def test_copies_stay_together_and_order_does_not_matter(pairs, fraction, seed):
    digest = np.array([d for d, _ in pairs], dtype=np.uint64)
    labels = np.array([label for _, label in pairs])
    held = hold_out(digest, labels, fraction, seed)
    assert not set(digest[held]) & set(digest[~held])
    np.testing.assert_array_equal(hold_out(digest[::-1], labels[::-1], fraction, seed), held[::-1])


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.sampled_from([0.05, 0.2, 0.9]))
def test_every_class_is_on_both_sides_in_its_share(labels, fraction):
    labels = np.array(labels)
    held = hold_out(np.arange(len(labels), dtype=np.uint64), labels, fraction, seed=0)
    for label in set(labels):
        n, out = (labels == label).sum(), held[labels == label].sum()
        assert out == min(n - 1, max(1, int(fraction * n + 0.5)))


def test_seed_decides():
    digest, labels = np.arange(100, dtype=np.uint64), np.zeros(100, dtype=np.int64)
    first, again, other = (hold_out(digest, labels, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_fraction_zero_holds_nothing_out():
    assert not hold_out(np.arange(9, dtype=np.uint64), np.zeros(9, dtype=np.int64), 0, 0).any()


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=rf"`fraction` must be .*got {fraction}"):
        hold_out(np.zeros(1, np.uint64), np.zeros(1, np.int64), fraction, 0)


def test_negative_seed():
    with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -3"):
        hold_out(np.zeros(1, np.uint64), np.zeros(1, np.int64), 0.5, -3)
