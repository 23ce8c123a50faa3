"""Print the table of the README: mean Dice of each way, and its paired difference to training from scratch.

Usage: python summarize.py   (in the folder that holds mlruns)
"""

from statistics import mean

from dmx.evaluation.paired import paired_difference
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.scores import paired_scores

WAYS = ("scratch", "transfer", "frozen-pathways")
CHOICES = (1, 2, 3)
METRICS = ("dice/mean", "dice/Anterior", "dice/Posterior")


def main() -> None:
    """Read the newest evaluations; of each case the three choices of training cases are averaged."""
    store = open_store()
    runs = [[store.find_run(f"hippocampus-transfer/{way}-{choice}") for way in WAYS] for choice in CHOICES]
    found = [paired_scores(store, choice) for choice in runs]
    if any(scores is None or len(scores.evaluations) < len(WAYS) for scores in found):
        raise SystemExit("Not all runs have been evaluated; run.sh does all of it.")
    tables = [scores.evaluations for scores in found if scores is not None]
    subjects = tables[0][0].subjects
    for metric in METRICS:
        print(f"\n{metric}, {len(subjects)} held-out cases")
        # Way → choice → case → score.
        scores = {way: [table[k].scores(metric) for table in tables] for k, way in enumerate(WAYS)}
        means = {way: {case: mean(one[case] for one in of) for case in subjects} for way, of in scores.items()}
        for way in WAYS:
            each = ", ".join(f"{mean(one.values()):.3f}" for one in scores[way])
            line = f"{way:16} {mean(means[way].values()):.3f} (choices: {each})"
            if way != WAYS[0] and (gain := paired_difference(means[WAYS[0]], means[way], subjects)) is not None:
                line += f"  {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]  p {gain.p:.2g}"
            print(line)


if __name__ == "__main__":
    main()
