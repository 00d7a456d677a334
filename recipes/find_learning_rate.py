"""Find a learning rate for one stage at one freeze state.

    python recipes/find_learning_rate.py --stage classifier --model runs/reviews_lm --train_file train.csv \
        --freeze_to -1 --output_dir runs/lr

Writes learning_rate.png (look at it) and learning_rate.json. The sweep leaves nothing behind: weights, random state and
data order are as before. Sweep once for each state you are going to train: --freeze_to -1, -2, 0
(the head; the last two layer groups; all of them).

Reading the picture: `valley` is a safe peak for one-cycle, `steep` is faster and riskier, `minimum` is a tenth of the
rate at the lowest loss, `slide` is the end of the slope.

One rate is swept for all groups that train. Give discriminative rates afterwards, for example in Python
`learner.fit_one_cycle(2, slice(valley / 2.6**4, valley))`: the input side gets the first, the head the last.

The same sweep for a language model, with every layer group trained:

    python recipes/find_learning_rate.py --stage language_model --train_file text.csv --freeze_to 0 --output_dir runs/lr
"""

from ulmfit_pipe import LearningRateJob, find_learning_rate, parse_settings, run_recipe


def main() -> None:
    """Read the settings, sweep, and show the suggestions."""
    job = parse_settings(
        LearningRateJob,
        description="Sweep the learning rate of a stage and suggest values.",
    )
    result = find_learning_rate(job)
    print(f"{len(result.lrs)} of {job.num_steps} steps before the loss diverged")
    for name, lr in result.suggestions.items():
        print(f"{name:>8}  {lr:.2e}")
    print(f"swept with these groups trained: {', '.join(result.trained)}")
    print(f"curve: {job.output_dir}/learning_rate.png")
    print(f"use it:  --{job.stage}.lr {result.valley:.1e}")


if __name__ == "__main__":
    run_recipe(main)
