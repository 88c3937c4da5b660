"""Progress of episodes in lock step: steps done of those that may come, in every way an episode can end."""

from gen_vla.evaluation.policies.step_progress import StepProgress


def test_early_ends_and_crashes_change_what_may_come(capsys):
    with StepProgress([40, 40, 60], done=2, name="mine") as progress:
        for _ in range(10):
            progress.step(3)
        assert (progress.bar.n, progress.bar.total) == (30, 140)
        progress.end(30)  # success after 10 of 40
        progress.more(10)  # another one crashed after 10 and begins again
        assert (progress.bar.n, progress.bar.total) == (30, 120)
        progress.step(40 + 50)
        progress.end(0)
        progress.end(0)
        assert (progress.bar.n, progress.bar.total) == (120, 120)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert shown.startswith("mine: 100%")
    assert "120/120" in shown
    assert "5/5 episodes" in shown


def test_nothing_is_shown_where_nobody_asks(capsys):
    with StepProgress([4], progress=False) as progress:
        progress.step(2)
        progress.end(2)
    assert capsys.readouterr().err == ""
