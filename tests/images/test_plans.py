import pytest

from ulmfit_pipe.images.plans import image_phases
from ulmfit_pipe.settings.images import ImageClassifierSettings
from ulmfit_pipe.training.optim import spread_lrs

NAMES = ["early", "late", "head"]


def phases_of(pretrained=True, **settings):
    return image_phases(3, ImageClassifierSettings(**settings), pretrained=pretrained)


def test_fine_tune_has_fastais_rates_and_curves():
    head, rest = phases_of(lr=2e-3, epochs_per_phase=2, final_epochs=4)
    assert (head.trainable, rest.trainable) == ((2,), (0, 1, 2))
    assert (head.epochs, rest.epochs) == (2, 4)
    assert list(head.lrs) == pytest.approx(spread_lrs(slice(2e-3), NAMES))
    assert list(rest.lrs) == pytest.approx(spread_lrs(slice(1e-5, 1e-3), NAMES))
    # fastai 2.8's own output for fine_tune(base_lr=2e-3), first stage, at 0, 0.1, ... of it
    golden = [8.000000e-5, 1.279317e-4, 2.669405e-4, 4.831454e-4, 7.549564e-4]
    assert [2e-3 * head.schedule.factor(step, 10) for step in range(5)] == pytest.approx(golden, rel=1e-6)
    assert rest.schedule.factor(0, 10) == pytest.approx(1 / 5)
    assert rest.schedule.factor(3, 10) == pytest.approx(1)
    assert [head.schedule.momentum(step, 100) for step in (0, 99)] == pytest.approx([0.95, 0.85])


@pytest.mark.parametrize(
    ("plan", "names", "epochs", "rates_of_the_last"),
    [
        ("gradual", ["last 1", "last 2", "all"], [2, 2, 3], [1e-2 / 2.6**2, 1e-2 / 2.6, 1e-2]),
        ("chain-thaw", ["only 2", "only 0", "only 1", "all"], [2, 2, 2, 3], [1e-3] * 3),
        ("lp-ft", ["head", "all"], [2, 3], [1e-3] * 3),
        ("head", ["head only"], [3], [1e-2] * 3),
        ("full", ["full"], [3], [1e-2 / 2.6**2, 1e-2 / 2.6, 1e-2]),
    ],
)
def test_every_other_plan_takes_the_epochs_and_rates_given(plan, names, epochs, rates_of_the_last):
    phases = phases_of(plan=plan, lr=1e-2, epochs_per_phase=2, final_epochs=3)
    assert [phase.name for phase in phases] == names
    assert [phase.epochs for phase in phases] == epochs
    assert list(phases[-1].lrs) == pytest.approx(rates_of_the_last)


def test_without_pretrained_weights_all_groups_train_from_the_start_at_one_rate():
    (phase,) = phases_of(pretrained=False, lr=1e-2)
    assert (phase.name, phase.trainable, phase.lrs) == ("full", (0, 1, 2), (1e-2,) * 3)
    assert [phase.name for phase in phases_of(pretrained=False, plan="fine-tune")] == ["head", "all"]
    assert phases_of(pretrained=False, lr_decay=2.0)[0].lrs[0] == pytest.approx(2e-3 / 4)


def test_the_rate_of_the_rest_can_be_given():
    assert phases_of(plan="lp-ft", lr=1e-2, rest_lr=4e-4)[1].lrs == (4e-4,) * 3
