"""The study of conditioners: what should the models of a hypernetwork depend on?

This page was written before any result existed, and before the code that computes them; what
follows is the plan.

**Questions.** (1) On tasks that were trained, how do models that follow from examples of the task,
from the input, or from input and task compare with those of a trained embedding? (2) On new tasks,
without a step of training, how do they compare with an embedding that is fitted, and with a probe
on a shared trunk? (3) Does it help a support set to be pooled by class (Requeima 2019) rather than
as a whole (Zaheer 2017)? A first trial of pooling as a whole was 8 to 9 points behind a fitted
embedding after 1,000 updates. (4) The hue experiment of F. Cubélier, "Sparse hypernetworks for
multitasking" (Liège, 2022), as it was: train on tasks in their own colours, then find embeddings
for copies of these tasks in other hues. How good are they, and is a fitted embedding better than
the model of the task that was copied?

**Families.** Every seed has fresh tasks.

- *rotated MNIST*: 12 angles of which the seed draws 2 that are new. Tasks are variations of one
  another with the same classes; heads are generated.
- *Fashion-MNIST pairs*: all 45 pairs of classes, of which the seed draws 2. Tasks have classes of
  their own; heads are solved by ridge regression from a task's examples, the command line's
  default. The input alone knows no tasks, so its head is generated; as most classes are the first
  of some pairs and the second of others, it cannot be right, and is there to show that.
- *CIFAR-10 pairs, then other hues*: five pairs, drawn anew for each seed, in their own colours;
  their copies at hues a quarter and half a turn away, ten tasks, are new. All heads are generated,
  as in the thesis: a copy has the labels of its original, so an embedding alone can say all.

Targets are small convolutional networks without norms, since a model for each input allows no batch
norm; all methods of a family have the same one.

**Methods.** All have the sparse generator of the command line with the base that it chooses (learned,
or residual where heads are solved), embeddings of 64 numbers, the same batches and as many updates. Encoders have the target's form. A new task comes
with 1, 5 or 20 images per class, the same for all methods.

- task embedding: the *mean embedding* of the known tasks and the *nearest embedding*, that of the
  known task whose model has the least loss on the images, without a step; and the *fitted
  embedding*, `fit_embedding` with its defaults;
- support set: the embedding of the images, *by class* and *mean*, without a step;
- *input*: the input alone, which needs no images of the task; *input and task*: with the mean of
  the known tasks' vectors;
- shared trunk: *linear probe*, the penalty by cross-validation, and *nearest mean*.

Where heads are solved, all hypernetworks but that of the input solve the new task's from its images.

**Search.** Every method has two trials of the learning rate, 2e-3 and 5e-3, on the tasks of a seed
of its own. The mean accuracy on validation images of its new tasks, from 5 images per class,
decides: of the task embedding that of the fitted one, of the trunk each way's own.

**Statistics.** Five seeds. Accuracies are means over a seed's tasks, on test images that nothing
else sees: at most 500 of each new task, every fifth of known ones. Differences are paired over
seeds, with 95% intervals by Student's t. All claims of a family count as one family of tests, and
their verdicts hold after Holm's correction.

**What counts as what.** On new tasks: support set by class − fitted embedding, − linear probe, −
support set as a whole, and − nearest embedding; input − fitted embedding; input and task − fitted
embedding; for each number of images, and their mean. On known tasks: each conditioner − task
embedding. For the hues also: fitted embedding − nearest embedding (is anything gained by finding
it?), − linear probe, and − its own accuracy on the tasks that were trained (what a change of hue
costs). A claim is supported if the difference is above zero, not supported if it is below, else
undecided; an interval says by how much. The mean over numbers of images is the verdict of a family.

**Cost.** The scale ``cpu`` is sized for about 20 minutes of one core.
"""
