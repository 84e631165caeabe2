import pytest
import torch

from sparsehyper.lab.data import (
    Alphabets,
    Hue,
    Images,
    Permuted,
    Rotated,
    Source,
    Split,
    Task,
    load_source,
)


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


@pytest.fixture
def own():
    """A source that defines tasks itself."""
    images = Images(torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.arange(5))
    tasks = Task("cats", (0, 1), ("x", "y")), Task("dogs", (2, 3, 4), ("x", "y", "z"))
    return Source("own", tuple("abcde"), images, images, tasks)


def _names(maker, source):
    return [task.name for task in maker.tasks(source)]


class TestSplit:
    def test_in_order(self, digits):
        tasks = Split(5).tasks(digits)
        assert [task.classes for task in tasks] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
        assert tasks[1].name == "5-6-7-8-9"
        assert tasks[1].class_names == ("5", "6", "7", "8", "9")
        assert Split().transform(digits) is None

    def test_combinations(self, digits):
        assert len(Split(2, combinations=True).tasks(digits)) == 45
        assert len(set(_names(Split(3, combinations=True), digits))) == 120

    def test_given_classes_keep_their_order(self, digits):
        tasks = Split([(7, 1), [0, 1, 2]]).tasks(digits)
        assert [task.classes for task in tasks] == [(7, 1), (0, 1, 2)]
        assert tasks[0].class_names == ("7", "1")

    def test_names_are_unique_even_when_class_names_conspire(self):
        images = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
        source = Source("s", ("a", "b-c", "a-b", "c"), images, images)
        assert _names(Split([(0, 1), (2, 3), (0, 1)]), source) == [
            "a-b-c",
            "a-b-c (2)",
            "a-b-c (3)",
        ]

    @pytest.mark.parametrize("classes", [1, 0, -2])
    def test_too_few_classes_a_task(self, classes):
        with pytest.raises(ValueError, match=rf"`classes` must be at least 2, got {classes}"):
            Split(classes)

    @pytest.mark.parametrize("group", [(3,), (), (3, 3)])
    def test_groups_that_are_no_task(self, group):
        with pytest.raises(ValueError, match=r"at least 2 different classes, got") as error:
            Split([(0, 1), group])
        assert str(group) in str(error.value)

    def test_no_groups(self):
        with pytest.raises(ValueError, match=r"`classes` must give at least one task, got none"):
            Split([])

    def test_a_class_that_does_not_exist(self, digits):
        with pytest.raises(ValueError, match=r"must be in 0..9 for source 'digits', got 10"):
            Split([(0, 10)]).tasks(digits)
        with pytest.raises(ValueError, match=r"`classes` must be at least 0, got -1"):
            Split([(0, -1)])

    def test_no_divisor_of_the_classes(self, digits):
        with pytest.raises(ValueError, match=r"divide the 10 classes .*\(2, 5, 10\), got 3"):
            Split(3).tasks(digits)

    def test_combinations_of_more_classes_than_there_are(self, digits):
        with pytest.raises(ValueError, match=r"`classes` must be at most 10 .*, got 11"):
            Split(11, combinations=True).tasks(digits)

    def test_combinations_of_given_tuples(self):
        with pytest.raises(ValueError, match=r"`combinations` needs a number .* got \[\(0, 1\)\]"):
            Split([(0, 1)], combinations=True)

    @pytest.mark.parametrize("classes", ["2", 2.5, None, [3, 4], [("0", "1")], True])
    def test_wrong_types(self, classes):
        with pytest.raises(TypeError, match=r"`classes` must"):
            Split(classes)


class TestVariants:
    def test_names(self, digits):
        assert _names(Permuted(2), digits) == ["permutation-0", "permutation-1"]
        assert _names(Rotated([0, 45, -7.5]), digits) == ["rotated+0", "rotated+45", "rotated-7.5"]

    def test_one_task_of_all_classes(self, digits):
        (task,) = Permuted(1).tasks(digits)
        assert task.classes == tuple(range(10))

    def test_variants_of_a_split(self, digits):
        tasks = Permuted(2, of=Split([(0, 1), (8, 9)])).tasks(digits)
        assert [(task.name, task.classes, task.variant) for task in tasks] == [
            ("0-1 permutation-0", (0, 1), 0),
            ("8-9 permutation-0", (8, 9), 0),
            ("0-1 permutation-1", (0, 1), 1),
            ("8-9 permutation-1", (8, 9), 1),
        ]

    def test_variants_of_the_tasks_of_the_source(self, own):
        tasks = Hue([0, 0.5]).tasks(own)
        assert [task.name for task in tasks] == [
            "cats hue+0",
            "dogs hue+0",
            "cats hue+0.5",
            "dogs hue+0.5",
        ]
        assert tasks[3].class_names == ("x", "y", "z")

    def test_permutations_differ_and_follow_from_the_seed_alone(self, digits):
        few, many = (Permuted(n, seed=3).transform(digits).settings for n in (2, 5))
        assert torch.equal(few, many[:2])
        assert torch.equal(many.sort().values, torch.arange(64).expand(5, -1))
        assert len(many.unique(dim=0)) == 5
        assert not torch.equal(few, Permuted(2, seed=4).transform(digits).settings)

    def test_equal_steps_round_the_circle(self):
        assert Rotated(3).angles == (0, 120, 240)
        assert Hue(5).shifts == pytest.approx((0, 0.2, 0.4, -0.4, -0.2))

    def test_hue_of_grey_images(self, digits):
        with pytest.raises(ValueError, match=r"colour images, got source 'digits' with 1 channel"):
            Hue().tasks(digits)

    def test_hue_out_of_range(self):
        with pytest.raises(ValueError, match=r"`shifts` must be in \[-0.5, 0.5\] turns, got 0.7"):
            Hue([0, 0.7])

    @pytest.mark.parametrize("make", [Permuted, Rotated, Hue])
    def test_no_tasks(self, make):
        with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
            make(0)

    @pytest.mark.parametrize("make", [Rotated, Hue])
    def test_bad_settings(self, make):
        with pytest.raises(ValueError, match=r"at least one number, got none"):
            make([])
        with pytest.raises(ValueError, match=r"must be finite, got nan"):
            make([float("nan")])
        for wrong in ("3", 2.5, None):
            with pytest.raises(TypeError, match=r"must be a number of tasks or a list"):
                make(wrong)

    def test_negative_seed(self):
        with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -1"):
            Permuted(2, seed=-1)

    @pytest.mark.parametrize("make", [Permuted, Rotated, Hue])
    def test_variants_of_variants(self, make):
        with pytest.raises(TypeError, match=r"`of` must be a Split or None, got Rotated"):
            make(3, of=Rotated(2))


class TestTooMany:
    @pytest.mark.parametrize("maker", [Permuted, Rotated, Hue, lambda n: Split([(0, n)])])
    def test_numbers_beyond_any(self, maker):
        with pytest.raises(ValueError, match=r"must be (at most|in 0..9)"):
            maker(10**30).tasks(load_source("digits"))

    @pytest.mark.parametrize("maker", [Permuted, Rotated, Hue])
    def test_tasks(self, maker):
        with pytest.raises(ValueError, match=r"must be at most 1000000, got 1000000000"):
            maker(10**9)

    def test_combinations(self):
        images = Images(torch.zeros(100, 1, 2, 2).byte(), torch.arange(100))
        source = Source("many", tuple(map(str, range(100))), images, images)
        with pytest.raises(ValueError, match=r"10 of 100 classes would be 17,310,"):
            Split(10, combinations=True).tasks(source)

    def test_variants_of_tasks(self, digits):
        maker = Permuted(100_000, of=Split(2, combinations=True))
        with pytest.raises(ValueError, match=r"45 tasks in 100,000 variants would be 4,500,000"):
            maker.tasks(digits)

    def test_orders_of_many_pixels(self):
        images = Images(torch.zeros(2, 1, 100, 100).byte(), torch.arange(2))
        source = Source("large", ("a", "b"), images, images)
        with pytest.raises(ValueError, match=r"orders of 10000 pixels would take 10,000,000,000"):
            Permuted(1_000_000).transform(source)


class TestAlphabets:
    @pytest.fixture
    def letters(self):
        sizes = {"Early_Aramaic": 22, "Greek": 7, "Latin": 26}
        names = tuple(f"{name}_{i}" for name, size in sizes.items() for i in range(size))
        images = Images(torch.zeros(55, 1, 2, 2, dtype=torch.uint8), torch.arange(55))
        return Source("letters", names, images, images)

    def test_each_task_has_5_to_12_characters_of_one_alphabet_in_turn(self, letters):
        tasks = Alphabets(60).tasks(letters)
        turn = ["Early_Aramaic-0", "Greek-0", "Latin-0", "Early_Aramaic-1"]
        assert [task.name for task in tasks[:4]] == turn
        for task in tasks:
            alphabets = {name.rpartition("_")[0] for name in task.class_names}
            assert alphabets == {task.name.rpartition("-")[0]}
            assert len(set(task.classes)) == len(task.classes)
            assert task.class_names == tuple(letters.classes[c] for c in task.classes)
        counts = {len(task.classes) for task in tasks}
        assert counts == set(range(5, 13))
        assert max(len(task.classes) for task in tasks[1::3]) == 7  # all of Greek

    def test_a_task_depends_on_the_seed_and_its_number_alone(self, letters):
        some, more = Alphabets(4, seed=3), Alphabets(9, seed=3)
        assert some.tasks(letters) == more.tasks(letters)[:4]
        assert some.tasks(letters) != Alphabets(4, seed=4).tasks(letters)

    def test_the_number_of_characters_can_be_given(self, letters):
        assert {len(task.classes) for task in Alphabets(9, ways=3).tasks(letters)} == {3}
        with pytest.raises(ValueError, match=r"`ways` must be at most 7, .*'Greek'.*got 8"):
            Alphabets(9, ways=8).tasks(letters)

    def test_classes_must_name_their_alphabet(self, digits):
        with pytest.raises(ValueError, match=r"named ALPHABET_CHARACTER, got '0' in .*'digits'"):
            Alphabets(2).tasks(digits)

    @pytest.mark.parametrize("settings", [{"n_tasks": 0}, {"seed": -1}, {"ways": 1}])
    def test_settings_are_checked(self, settings):
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=f"`{name}` must be .*{value}"):
            Alphabets(**settings)
