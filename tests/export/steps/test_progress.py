"""Build progress: the ETA is None before a stage is timed, and follows the measured pace afterwards."""

import json
import time

from calotype.export.steps.progress import Bars, Display, JsonLines, OpeningProgress, PlainLines, Progress, Stage, clock


class Seen(Display):
    """Collects the states."""

    def __init__(self):
        self.states = []

    def show(self, state):
        self.states.append(state)


STAGES = [Stage(name="a", guess_s=10), Stage(name="b", guess_s=10), Stage(name="c", guess_s=20)]


def test_eta_follows_the_pace(monkeypatch):
    now, seen = [0.0], Seen()
    monkeypatch.setattr("calotype.export.steps.progress.time.monotonic", lambda: now[0])
    progress = Progress(STAGES, seen)
    with progress.stage("a", cached=True):
        pass
    with progress.stage("b"):
        now[0] += 20  # double its guess
    with progress.stage("c"):
        progress.note("half way")
        now[0] += 40
    events = [(s.event, s.stage, s.done, s.eta_s) for s in seen.states]
    assert events == [
        ("found", "a", 1, None),  # a cached stage is not timed
        ("start", "b", 1, None),
        ("done", "b", 2, 40.0),
        ("start", "c", 2, 40.0),
        ("note", "c", 2, 40.0),
        ("done", "c", 3, 0.0),
    ]
    assert seen.states[-1].elapsed_s == 60


def test_json_lines_are_json_and_plain_lines_are_plain(capsys):
    for display in (JsonLines(), PlainLines()):
        with display as shown:
            progress = Progress(STAGES[:1], shown)
            with progress.stage("a"):
                progress.note("some words")
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["start", "note", "done"]
    assert err.splitlines() == ["      a: some words  (0 s)", "[1/1] a: done  (0 s)"]


def test_steps_of_a_stage_are_shown_at_intervals(monkeypatch, capsys):
    clock_s = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock_s) / 4)

    class Counted(PlainLines):
        steps = 0

        def show(self, state):
            self.steps += state.event == "step"
            super().show(state)

    with Counted() as counted:
        progress = Progress(STAGES[:1], counted)
        with progress.stage("a"):
            for i in range(100):
                progress.step(f"{i} of 100")
    assert 20 < counted.steps < 50
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) - 1 <= 5
    assert all(" of 100  (" in line for line in lines[:-1])


def test_clock():
    assert [clock(s) for s in (0.4, 59, 61, 3599, 3600, 7380)] == [
        *("0 s", "59 s", "1 min 01 s", "59 min 59 s", "1 h 00 min", "2 h 03 min")
    ]


def test_bars_show_finished_stages_above_a_live_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bars() as bars:
        progress = Progress(STAGES[:2], bars)
        with progress.stage("a", cached=True):
            pass
        with progress.stage("b"):
            progress.note("some words")
            progress.step("half")
    err = capsys.readouterr().err
    for words in ("(in the cache)", "some words", "✓"):
        assert words in err


def test_a_guess_counts_before_a_stage_is_timed_and_the_rest_counts_down(monkeypatch):
    now, seen = [0.0], Seen()
    monkeypatch.setattr("calotype.export.steps.progress.time.monotonic", lambda: now[0])
    progress = Progress(STAGES, seen, trusts_guesses=True)
    with progress.stage("a"):
        now[0] += 4
        progress.note("on the way")
        now[0] += 16
        progress.note("longer than its guess")
    assert [s.eta_s for s in seen.states] == [40.0, 36.0, 30.0, 60.0]


def test_a_model_that_opens_shows_a_bar_on_a_terminal_only(monkeypatch, capsys):
    opening = OpeningProgress()
    with opening.over(STAGES), opening.stage("a", "tracing a (once)"):
        pass
    assert capsys.readouterr().err == "tracing a (once)\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with opening.over(STAGES), opening.stage("a", "tracing a (once)"):
        pass
    shown = capsys.readouterr().err
    assert "tracing a (once)" not in shown
    assert "a" in shown
    with opening.over([]), opening.stage("b", "tracing b (once)"):  # nothing takes long
        pass
    assert capsys.readouterr().err == "tracing b (once)\n"
