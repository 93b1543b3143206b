"""The thresholds of the diagnosis, and where each comes from."""

from __future__ import annotations

# Variance of the mean loss over N validation images between trainings that differ in their seed alone: this much times
# the loss, divided by N. A loss is the sum of few large values, so its variance grows with it, like a count's. Measured
# on the sample (450 images), five seeds each, median over epochs: mlp 0.30, mlp with dropout 0.24, cnn 0.39; the same
# of the share of errors: 0.22, 0.26, 0.36. On MNIST (6,000 images) two settings of the default's cnn, three seeds each,
# differed by sd 0.0007 and 0.0009 at a loss of 0.013, where this says 0.0008.
SEED_VARIANCE = 0.3
# Standard deviations that a difference must exceed: 1 of 20 differences by chance alone is larger.
SIGMAS = 2.0
# Epochs at the end that are taken together, so that one lucky or unlucky epoch decides nothing.
LAST = 3

# Accuracy up to this share of the way from chance to 1 is guessing: 0.19 for ten classes. Networks that learn pass 0.4
# within two epochs, and guessing on 450 images stays below 0.15.
GUESSING = 0.1
# A layer of fewer units than this share of the classes loses them where single units fall silent.
NARROW = 0.5
# A training loss this many times that of guessing is worse than no network; an untrained one stays below 1.1.
WORSE_THAN_GUESSING = 1.2
# Rates that break no network of these, so that one which guesses has only begun: a tenth to a hundredth of those in
# conf/optimizer/. An epoch of the sample at 1e-6 (adamw) or 1e-4 (sgd) moved no loss by 0.02.
SMALL_RATES = {"sgd": 1e-3, "adam": 1e-4, "adamw": 1e-4, "rmsprop": 1e-4}
# Share of the loss of guessing that a training loss falls below in an epoch or two where the rate suits: mlp, lenet and
# cnn have 0.1 to 0.3 after the first epoch on the sample; SGD at a fiftieth of its rate has 0.3 after eight.
SLOW = 0.4
# Share of the loss of guessing above which training images are not fitted: accuracies there were below 0.97.
NOT_FITTED = 0.06
# Share of what was learnt, from guessing to the lowest training loss, whose loss is a collapse and no oscillation.
LOST = 0.25
# A swing is this share of the loss around it. Successful trainings at a constant rate rose by 5 to 15 % now and then;
# SGD at a rate too high to settle by 24 to 115 %, again and again.
SWING = 0.2
SWINGS, RECENT = 2, 10
# A rise by this share of the noise is no accident where the gap to training has grown by all of it. Five seeds of the
# mlp on the sample rose by 0.3 to 0.8 of it.
RISE = 0.25
# A training loss that has fallen to this share of what it was at the best epoch is one of images learnt by heart.
BY_HEART = 0.5
# A gap of so many times the noise of a seed is worth a remedy: with shifted images the validation loss of eight such
# trainings on the sample was 15 to 48 % lower. Dropout beside shifted images did not help.
LARGE_GAP = 3.0

# Penalties at and above these keep networks of this size from fitting. L1 counts every weight, L2 its square; AdamW
# shrinks weights by lr * weight_decay an update. On the sample: L1 0.01, L2 0.1 and 1 and dropout 0.9 spoilt the mlp;
# L2 0.01 did so with varied images; dropout 0.5 did not.
STRONG_L1 = 1e-3
STRONG_L2 = 0.01
STRONG_SHRINKING = 5e-3
STRONG_DROPOUT = 0.7
