"""What the log concluded, and the pairs of experiments that test it; report.py makes the tables of EXPERIMENTS.md.

python insights.py     the names of the experiments that the contrasts need

A contrast is two experiments that differ in one thing; its runs are paired by seed. An insight rests on contrasts, or
has a verdict of its own where no run of ours can tell.
"""

from dataclasses import dataclass

MARGIN = 5.0  # points of solved puzzles; two that surely differ by less count as alike


@dataclass
class Contrast:
    question: str
    better: str  # what the log found to be the better one
    worse: str


CONTRASTS = {
    "iteration": Contrast("16 passes, or one", "sudoku", "ablation_no_iteration"),
    "supervision": Contrast("a loss at every iteration, or at the last", "sudoku", "ablation_no_intermediate"),
    "sharing": Contrast("one set of layers, or one for each iteration", "sudoku", "exp_unrolled"),
    "phases": Contrast("one set of layers, or two by phase", "sudoku", "exp_middle1"),
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
    "sum or gate": Contrast("the state added, or through a gate", "exp_recur_add", "exp_recur_gated"),
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
    contrasts: tuple = ()  # names of CONTRASTS
    alike: bool = False  # the log says that the two do not differ
    verdict: str = ""  # where contrasts cannot give it
    note: str = ""


NO_BASIS, TOO_SMALL = "no basis in the log", "not testable at this scale"
INSIGHTS = (
    Insight("1. Iteration is essential", ("iteration",)),
    Insight(
        "2. An iteration needs its four layers; two are few",
        ("phases",),
        note="the log's evidence, like ours, also splits the layers into two encoders",
    ),
    Insight("3. Sharing weights between iterations helps", ("sharing",)),
    Insight("4. Concatenating the inputs is enough", ("concat",), alike=True),
    Insight("5. A loss at every iteration helps", ("supervision",)),
    Insight(
        "6. 2D RoPE does as well as row, column and box",
        ("rope",),
        alike=True,
        note="RoPE's layers also start independently, without Xavier",
    ),
    Insight("8. Runs vary much", verdict="confirmed", note="see the spread over seeds; a rerun moved 817 to 555"),
    Insight(
        "9. Batch 256 is best before SAM",
        ("batch 256", "batch 512"),
        note="the best test of 256 is 908, the log has 897",
    ),
    Insight("10. SAM makes large batches generalise", ("sam",), note="the optimiser changes along with SAM"),
    Insight(
        "11. Mixed difficulty is essential: 77.5 % on the hardest",
        verdict=NO_BASIS,
        note="the 77.5 % is of training puzzles; held out, 722 of 1,000 over all difficulties",
    ),
    Insight(
        "12. Hard puzzles do not teach easy ones",
        verdict=NO_BASIS,
        note="on held-out rows hard-only has 913, 702 and 570 at 0.0, 1.x and 2.x, easy-only 959, 653 and 476",
    ),
    Insight("13. Hard puzzles first beats mixed, easy first is worst", ("hard first", "easy first", "orders")),
    Insight(
        "14. A carried hidden state is a large gain, the plain sum the best form",
        ("recur add", "recur concat", "recur gated", "recur mem", "sum or gate"),
    ),
    Insight(
        "15. Predictions still help beside the state", ("predictions add", "predictions concat", "predictions mem")
    ),
    Insight("16. A mixer does as well as attention", ("mixer",), alike=True, note="GELU and no dropout came with it"),
    Insight("17. The puzzle is needed only once", ("puzzle again",), alike=True),
    Insight(
        "18. 50,000 to 60,000 steps are enough",
        ("steps",),
        alike=True,
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
        "20. An average of the weights does not help",
        ("ema", "ema cosine"),
        alike=True,
        note="in the log's exp_ema it was never used: 77.5 % is a rerun of exp_warmup; in exp_cosine_ema it was",
    ),
    Insight("SAM is not needed under cosine", ("sam cosine",), alike=True),
    Insight("Weight decay 1.0 hurts", ("weight decay",)),
    Insight("The activation makes no difference", ("gelu", "relu2"), alike=True),
    Insight("Larger batches help", ("batch 2048", "batch 4096")),
    Insight("Width helps, more depth on top does not", ("wide", "deep")),
    Insight(
        "Position as distance along the board is not enough",
        ("t5", "alibi"),
        note="ALiBi's layers also start independently, without Xavier",
    ),
)


def judged(insight, intervals):
    """The mark of an insight; `intervals`: the interval of each contrast that has two seeds or more."""
    known = [intervals[name] for name in insight.contrasts if name in intervals]
    if insight.verdict or not known:
        return insight.verdict or "not run"
    if insight.alike:
        if all(low > -MARGIN and high < MARGIN for low, high in known):
            return f"confirmed, within {MARGIN:.0f} points"
        return "not confirmed" if any(low > 0 or high < 0 for low, high in known) else "mini cannot tell"
    shown = sum(low > 0 for low, _ in known)
    if any(high < 0 for _, high in known):
        return "not confirmed" if not shown else "confirmed in part, in part the opposite"
    if shown == len(insight.contrasts):
        return "confirmed"
    return "confirmed in part" if shown else "mini cannot tell"


if __name__ == "__main__":
    print(*sorted({name for contrast in CONTRASTS.values() for name in (contrast.better, contrast.worse)}))
