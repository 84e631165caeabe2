"""The fair comparison: is sparse ahead of chunked, where, by how much, and for how long?

It supersedes the study of methods (`comparison`), which was revised three times after its test
figures had been seen, each time in favour of sparse. This page was written before any result
existed, and is left alone once there is one: what is changed later is a new study.

**Questions.** (1) On which sets of tasks, and at which budgets, is one of the two generators more
accurate? (2) Are the generators of the thesis, as it proposed them? (3) Where does the lead end as
training gets longer? (4) Why was sparse behind on CIFAR-10 2×5 at 4 N?

**Sets.** Permutations of MNIST and of Fashion-MNIST, twenty pairs of Fashion-MNIST, and CIFAR-10
in five pairs and in two groups of five. Permutations, pairs and groups are drawn anew for every
seed, and so is the split into training and validation images, so that an interval speaks of tasks
like these. Sets where every method has 99% are left out, as a difference cannot show there.

**Test images.** Half of them, those whose hash is odd, are held back: they are opened once, by the
final trainings of this study. The other half is for development and is not used here. Searches see
validation images only. The earlier study has seen all test images as a mean over seeds; its
revisions chose among designs of the generator, which this study takes as they are.

**Methods.** At each budget the default sparse generator (linear fan-in, growth 2, weights shared
where the budget asks for it) and chunked. At 4 N the thesis's own: sparse with uniform and with
local wiring, a linear schedule, a base of zeros and nothing shared; and chunked with two hidden
layers of twice the embedding. As a frame, experts and a shared trunk. None has tasks that start
alike, a base or an embedding that others may not have: see the search.

**Search.** On every set, for every method and budget, on tasks of a seed of their own:

- settings of both: the learning rate, the base (zeros or learned), the similarity of tasks at the
  start, the length of an embedding; of chunked also one or two hidden layers, their width and the
  length of a chunk's embedding; the number of chunks follows from these and the budget. Sparse has
  no further setting. The thesis's own have their learning rate and embedding length searched;
  experts and the trunk, their learning rate;
- three trials for each of these settings, so 12 for sparse and 21 for chunked. A draw that cannot
  meet the budget costs no trial. Every search draws its own trials;
- while the best trial lies at an end of a range, the range is extended there, a learning rate by a
  factor of four and others by their next value, and one trial for each setting is added, for at
  most four rounds. The rule is the same for all, and the page says which ends were still best.

**Statistics.** Eight seeds; differences are paired over them, with 95% intervals by Student's t.
The claims of each question are a family, and a verdict needs p ≤ 0.05 after Holm's correction in
it. A difference is also said as images in 10,000. It is *small* where its whole interval is within
25 of these, whatever the verdict.

**What counts as what.** Question 1 is answered with the places where a verdict falls, for either
side; there is no mean over budgets, which one budget may carry. Question 2: the thesis's best
sparse against its chunked at 4 N, with both wirings as claims. Question 3: differences of question
1 after 500, 1,500, 5,000 and 20,000 updates, at 0.25 N and 4 N, on the Fashion-MNIST sets, four
seeds. Settings are those found at 500 updates, but from 5,000 on the learning rate is the best of
three, 1, ½ and ¼ of it, on validation images after 5,000. Also once as the thesis trained, with
halving and patience: a training stops when 10 of at most 300 evaluations have brought nothing.
The lead *ends* at the first length from which on no verdict falls for sparse. Question 4: variants
of sparse with fewer numbers of their own for a task (a base, 4, 16 or 64 units to a weight), with
short embeddings, and with weight decay, on CIFAR-10 2×5, and how much better each is on its
training images than on new ones. Whichever closes most of the gap names the cause.

**Cost.** From the recorded trainings of the earlier study, 6 to 9 seconds of one core each at 500
updates (MLP, 10 to 14 ms a step) or 350 (CNN, 16 to 20 ms): question 1 has 20 places of about 55
trainings, 9,000 s; the frame 600 s; question 2 2,200 s; question 3 11,600 s; question 4 500 s. Sum
about 24,000 s of one core, 3.3 hours of two. Sets are run one after another, question 3 last.
"""
