"""What a report says of how its numbers were made."""

from ffn_alloc.reporting.comparison import DRAWS
from ffn_alloc.reporting.statistics import LEVEL, POWER

PARAGRAPHS = (
    "Relative improvement, s the score of an allocation and b that of its baseline, each the mean "
    "over seeds: accuracy 100 · (s − b) / b; perplexity, bits per byte and loss, where lower is "
    "better, 100 · (b − s) / b. Positive is better in all of them. Averages weigh every task's "
    "primary metric equally, so that a group such as mmlu weighs as much as its 57 tasks, and are "
    "given with and without the perplexity-like ones. The formula of the paper that the idea comes "
    "from (arXiv 2508.17734) is not known to us; this is our own. Where a baseline's score is not "
    "clearly above 0 (by four standard errors, and in each draw of items) nothing is divided by "
    "it, and the task is left out of the averages.",
    f"Uncertainty of the items: all runs answered the same items, which are drawn again {DRAWS:,} "
    "times with replacement, in every draw the same ones for all runs, and independently for each "
    "task. Uncertainty of the seeds: the variance between seeds over their number, with Student's "
    "t distribution, since two to five seeds are too few to be drawn again (such intervals come "
    "out far too narrow). What one seed does on one item by chance is in both and counted once. An "
    "interval reaches √(t² · V(seeds) + t² · V(items)) to either side, each t of its own degrees "
    "of freedom (Howe 1974), but never less than the items alone, drawn again for the same models, "
    "would ask for: the seeds of a few right answers often score alike by luck. In simulations it "
    "holds the truth about 95 times in 100, and up to 99 or more where several parts matter.",
    "Pairs: a run starts from parameters and sees rows that depend on its seed alone, so runs of "
    "one seed are compared with each other where allocation and baseline have the same seeds. "
    "Otherwise all seeds of both count as independent ones (Welch), which can only widen the "
    "interval where seeds do have something in common. With a single seed on one side, the other "
    "side's variance between seeds stands for both; with a single seed on both, the interval "
    "covers the items alone and nothing is concluded.",
    "Several allocations: where two or more have the baseline's seeds, the variance between seeds "
    "is taken from all allocations of the size together (as if seeds did the same to all of them), "
    "but never below what the allocation's own seeds show. With few seeds that makes intervals "
    "much narrower; if one allocation's seeds in truth vary twice as much as the others', its 95 % "
    "interval holds the truth about 93 times in 100.",
    "Guessing, of tasks with choices: the mean score of a choice at random or, where all questions "
    "have the same choices, of always the same one if that scores more (as recorded with the "
    "results; earlier versions recorded the former alone). Baseline and allocation are both at "
    "chance where neither's interval lies above it; then nothing is concluded.",
    "p-values are two-sided and invert these intervals. Holm's correction is made over all "
    "allocations and sizes, apart for the average of all tasks, for the average without "
    "perplexity, and for all single tasks. It counts every comparison that has a p-value, those at "
    "chance too: which these are depends on the differences that are tested. Better and worse "
    f"mean: below {LEVEL:.0%} after the correction. Detectable: the true effect that would be "
    f"found with {POWER:.0%} probability at {LEVEL:.0%}, without correction, given the variances "
    "seen here.",
)
