"""What the log concluded, and the pairs of experiments that test it; report.py makes the tables of EXPERIMENTS.md.

python insights.py     the names of the experiments that the contrasts need

A contrast is two experiments that differ in one thing; its runs are paired by seed. An insight rests on contrasts, or
has a verdict of its own where no run of ours can tell.
"""

import statistics
from dataclasses import dataclass
from typing import Literal

MARGIN = 5.0  # points of solved puzzles; two that surely differ by less count as alike
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t for 2 to 10 values, two-sided 95 %


@dataclass
class Contrast:
    question: str
    better: str  # what the log found to be the better one
    worse: str


CONTRASTS = {
    "iteration": Contrast("16 passes, or one", "sudoku", "ablation_no_iteration"),
    "supervision": Contrast("a loss at every iteration, or at the last", "sudoku", "ablation_no_intermediate"),
    "sharing": Contrast("one set of layers, or one for each iteration", "sudoku", "exp_unrolled"),
    "two phases": Contrast("one set of layers, or two by phase", "sudoku", "exp_middle1"),
    "four phases": Contrast("one set of layers, or four by phase", "sudoku", "exp_middle2"),
    "concat": Contrast("puzzle and predictions concatenated, or mapped and added", "sudoku", "exp_proj_add"),
    "batch 256": Contrast("batch 256 or 128, with Muon", "sudoku_bs256", "sudoku"),
    "batch 512": Contrast("batch 256 or 512, with Muon", "sudoku_bs256", "sudoku_bs512"),
    "sam": Contrast("SAM with AdamW, or Muon", "exp_sam", "sudoku_bs512"),
    "sam cosine": Contrast("SAM or not, under cosine", "exp_cosine", "exp_cosine_no_sam"),
    "easy first": Contrast("mixed, or easy puzzles first", "train_mixed", "train_curriculum"),
    "hard first": Contrast("hard puzzles first, or mixed", "train_curriculum_reverse", "train_mixed"),
    "orders": Contrast("hard puzzles first, or easy ones", "train_curriculum_reverse", "train_curriculum"),
    "orders cosine": Contrast("hard first or easy first, under cosine", "exp_cosine", "exp_cosine_regular"),
    "mix cosine": Contrast("hard first or mixed, under cosine", "exp_cosine", "exp_cosine_mixed"),
    "recur add": Contrast("the state added to the input, or none", "exp_recur_add", "train_curriculum_reverse"),
    "recur concat": Contrast("the state concatenated, or none", "exp_recur_concat", "train_curriculum_reverse"),
    "recur gated": Contrast("the state through a gate, or none", "exp_recur_gated", "train_curriculum_reverse"),
    "recur mem": Contrast("a memory, or none", "exp_recur_mem", "train_curriculum_reverse"),
    "sum or concat": Contrast("the state added, or concatenated", "exp_recur_add", "exp_recur_concat"),
    "sum or gate": Contrast("the state added, or through a gate", "exp_recur_add", "exp_recur_gated"),
    "sum or memory": Contrast("the state added, or a memory", "exp_recur_add", "exp_recur_mem"),
    "predictions add": Contrast("predictions fed back or not, state added", "exp_recur_add", "exp_recur_add_nopred"),
    "predictions concat": Contrast(
        "predictions fed back or not, state concatenated", "exp_recur_concat", "exp_recur_concat_nopred"
    ),
    "predictions mem": Contrast("predictions fed back or not, memory", "exp_recur_mem", "exp_recur_mem_nopred"),
    "puzzle again": Contrast("the puzzle at every iteration, or once", "exp_recur_add", "exp_no_x_after_init"),
    "mixer": Contrast("a mixer, or attention", "exp_mlp_mixer", "exp_extreme_baseline"),
    "batch 2048": Contrast("batch 2048 or 512", "exp_scale_batch", "exp_extreme_baseline"),
    "batch 4096": Contrast("batch 4096 at 1.5 times the rate, or 512", "exp_scale_batch_4k", "exp_extreme_baseline"),
    "wide": Contrast("twice the width, or not", "exp_scale_wide", "exp_extreme_baseline"),
    "deep": Contrast("twice the width, or also twice the depth", "exp_scale_wide", "exp_scale_up_big_gpu"),
    "warm-up": Contrast("warm-up or not", "exp_warmup", "exp_scale_batch_4k"),
    "cosine": Contrast("cosine or a constant rate", "exp_cosine", "exp_warmup"),
    "steps": Contrast("70,000 or 50,000 steps, under cosine", "exp_cosine_no_sam", "exp_cosine_50k"),
    "weight decay": Contrast("weight decay 0.01 or 1.0", "exp_cosine_no_sam", "exp_cosine_wd"),
    "gelu": Contrast("ReLU or GELU", "exp_cosine_no_sam", "exp_cosine_gelu"),
    "relu2": Contrast("ReLU or its square", "exp_cosine_no_sam", "exp_cosine_relu2"),
    "ema": Contrast("the last weights, or their average", "exp_warmup", "exp_ema"),
    "ema cosine": Contrast("the last weights, or their average, under cosine", "exp_cosine_no_sam", "exp_cosine_ema"),
    "fixed start": Contrast("h0 from the puzzle, or fixed noise", "exp_warmup", "exp_fixed_init"),
    "carry": Contrast("a fresh state each step, or one carried on", "exp_warmup", "exp_carry"),
    "rope": Contrast("row, column and box added, or 2D RoPE", "exp_cosine_50k", "exp_faster_2drope"),
    "box": Contrast("row, column and box, or no box", "exp_cosine_50k", "exp_faster_rowcol"),
    "81 vectors": Contrast("row, column and box, or a vector for each cell", "exp_cosine_50k", "exp_faster_abspos"),
    "t5": Contrast("row, column and box, or a bias by distance", "exp_cosine_50k", "exp_faster_t5bias"),
    "alibi": Contrast("row, column and box, or ALiBi", "exp_cosine_50k", "exp_faster_alibi"),
    "positions easy": Contrast("row, column and box, or a vector for each cell, easy puzzles", "sudoku",
                               "ablation_no_sudoku_pos"),
    "sinusoidal": Contrast("row, column and box, or one sinusoidal table", "sudoku", "exp_sinusoidal_pos"),
}  # fmt: skip


@dataclass
class Insight:
    log: str  # what the log says, and under which number
    contrasts: tuple = ()  # names of CONTRASTS: the first of each is better, if nothing is said below
    enough: Literal["", "first", "second", "both"] = ""  # this one is no worse, by MARGIN; both: neither is
    verdict: str = ""  # where contrasts cannot give it
    note: str = ""


WRONG, TOO_SMALL, SPREAD = "wrong in the log", "not testable at this scale", "spread over seeds"
INDEPENDENT = "its layers also start independently, without Xavier"
INSIGHTS = (
    Insight("1. Iteration is essential", ("iteration",)),
    Insight(
        "2. An iteration needs its four layers; two are few",
        ("two phases", "four phases"),
        note="both also split the layers into encoders by phase; at mini both have one layer an iteration, and "
        "exp_middle2 twice the parameters",
    ),
    Insight("3. Sharing weights between iterations helps", ("sharing",)),
    Insight("4. Concatenating the inputs is enough", ("concat",), enough="first"),
    Insight("5. A loss at every iteration helps", ("supervision",)),
    Insight("6. 2D RoPE does as well as row, column and box", ("rope",), enough="second", note=INDEPENDENT),
    Insight("8. Runs vary much", verdict=SPREAD, note="a rerun in the log moved 817 to 555"),
    Insight(
        "9. Batch 256 is best before SAM",
        ("batch 256", "batch 512"),
        note="the best test of 256 is 908, the log has 897; mini's batches are 3, 4 and 5",
    ),
    Insight(
        "10. SAM with AdamW is better than Muon",
        ("sam",),
        note="the log calls it the gain of SAM; no pair without cosine changes SAM alone",
    ),
    Insight("10. It is so because it lets large batches generalise", verdict=TOO_SMALL, note="mini's are of 5"),
    Insight(
        "11. Mixed training solves 77.5 % of the hardest puzzles",
        verdict=WRONG,
        note="they were training puzzles; held out, 722 of 1,000 over all difficulties. That a network trained on easy "
        "puzzles fails on the hardest (12.5 %) stands",
    ),
    Insight(
        "12. Hard puzzles do not teach easy ones",
        verdict=WRONG,
        note="the table holds training puzzles; on held-out ones training on hard puzzles gives 913, 702 and 570 of "
        "1,000 at 0.0, 1.x and 2.x, training on easy ones 959, 653 and 476",
    ),
    Insight("13. Hard puzzles first beats mixed, easy first is worst", ("hard first", "easy first", "orders")),
    Insight(
        "14. A carried hidden state helps",
        ("recur add", "recur concat", "recur gated", "recur mem"),
        note="at mini the gated one stays at chance",
    ),
    Insight("14. The plain sum is its best form", ("sum or concat", "sum or gate", "sum or memory")),
    Insight(
        "15. Predictions still help beside the state", ("predictions add", "predictions concat", "predictions mem")
    ),
    Insight("16. A mixer does as well as attention", ("mixer",), "first", note="GELU and no dropout came with it"),
    Insight("17. The puzzle is needed only once", ("puzzle again",), enough="second"),
    Insight(
        "18. 50,000 to 60,000 steps are enough",
        ("steps",),
        enough="second",
        note="the log says it of a constant rate on Kaggle's puzzles; this pair is under cosine",
    ),
    Insight(
        "19. The training set's kind counts more than its size",
        verdict=TOO_SMALL,
        note="generated puzzles are of one kind; the log's 31.7 % contradicts its own buckets",
    ),
    Insight("20. Cosine decay is the key technique", ("cosine",)),
    Insight("20. Warm-up helps", ("warm-up",)),
    Insight(
        "20. An average of the weights is worse than the last ones",
        ("ema",),
        note="in the log's exp_ema it was never used: 77.5 % is a rerun of exp_warmup",
    ),
    Insight(
        "20. A first state of fixed noise does not help",
        ("fixed start",),
        enough="first",
        note="the puzzle then enters at every iteration, too",
    ),
    Insight(
        "20. States carried from step to step do not work",
        ("carry",),
        note="in the log it diverges; the puzzle's encoder gets a gradient in 4 of 70,000 steps only",
    ),
    Insight(
        "20. Eight times the parameters hurt",
        verdict=WRONG,
        note="69.7 % is the run in four parts of 128; the same network with 512 at once has 73.5, the baseline 71.4",
    ),
    Insight("Under cosine, hard first still beats easy first", ("orders cosine",)),
    Insight("Under cosine, mixed does as well as hard first", ("mix cosine",), enough="second"),
    Insight("Under cosine, an average of the weights does not help", ("ema cosine",), enough="first"),
    Insight("SAM is not needed under cosine", ("sam cosine",), enough="second"),
    Insight(
        "Weight decay 1.0 hurts",
        ("weight decay",),
        note="at mini it learns nothing at all: a step shrinks the weights by rate x decay, 3.3 times the log's",
    ),
    Insight("The activation makes no difference", ("gelu", "relu2"), enough="both"),
    Insight("Larger batches help", ("batch 2048", "batch 4096"), note="at mini 7 and 8 puzzles, against 5"),
    Insight("Width helps", ("wide",)),
    Insight("On top of width, depth does not help", ("deep",), enough="first"),
    Insight("Row, column and box are better than a vector for each cell", ("positions easy", "81 vectors")),
    Insight("The box is not needed", ("box",), enough="second"),
    Insight("One sinusoidal table for all three breaks it", ("sinusoidal",)),
    Insight(
        "Position as distance along the board is not enough",
        ("t5", "alibi"),
        note=f"ALiBi: {INDEPENDENT}; at mini two heads keep the slopes 1/16 and 1/256 only",
    ),
)


def interval(points):
    """The mean's 95 % interval by Student's t, over two seeds or more."""
    mean, count = statistics.mean(points), len(points)
    reach = T95[min(count, len(T95) + 1) - 2] * statistics.stdev(points) / count**0.5
    return mean - reach, mean + reach


def judged(insight, intervals, narrow=()):
    """The mark of an insight.

    `intervals`: the interval of each contrast that has two seeds or more. `narrow`: the contrasts whose runs solve so
    few puzzles, or so many, that a loss of MARGIN could not show.
    """
    known = [intervals[name] for name in insight.contrasts if name in intervals]
    if insight.verdict or not known:
        return insight.verdict or "not run"
    partly = len(known) < len(insight.contrasts)
    if insight.enough:
        losses = [loss for low, high in known for loss in at_stake(insight.enough, low, high)]
        if any(least > MARGIN for least, _ in losses):
            return "not confirmed"
        if partly:
            return "not all run yet"
        if set(narrow) & set(insight.contrasts):
            return "mini cannot tell: no room"
        alike = all(most < MARGIN for _, most in losses)
        return f"confirmed, within {MARGIN:.0f} points" if alike else "mini cannot tell"
    shown = sum(low > 0 for low, _ in known)
    if any(high < 0 for _, high in known):
        return "not confirmed" if not shown else "confirmed in part, in part the opposite"
    if partly:
        return "not all run yet"
    if shown == len(insight.contrasts):
        return "confirmed"
    return "confirmed in part" if shown else "mini cannot tell"


def no_room(enough, first, second):
    """Whether a loss of MARGIN could not show. `first`, `second`: the mean of each, in % solved."""
    enough_ones = {"first": [first], "second": [second], "both": [first, second], "": []}[enough]
    return max(first, second) < MARGIN or any(mean > 100 - MARGIN for mean in enough_ones)


def at_stake(enough, low, high):
    """By how much the one that is said to be enough is worse, as intervals."""
    return [(-high, -low)] * (enough != "second") + [(low, high)] * (enough != "first")


if __name__ == "__main__":
    print(*sorted({name for contrast in CONTRASTS.values() for name in (contrast.better, contrast.worse)}))
