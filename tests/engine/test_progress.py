"""What the user sees while it trains."""

from __future__ import annotations

import io
import logging
import re

import pytest

from fastssl.engine import progress
from fastssl.engine.console import Console
from fastssl.engine.progress import Progress, Stopwatch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_carry_loss_throughput_data_wait_and_time_left(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    text = io.StringIO()
    toy.train(tmp_path / "run", console=Console(text), readouts=())
    lines = [line for line in text.getvalue().splitlines() if line.startswith("step ")]
    assert len(lines) == 24
    pattern = r"step 10/24  loss \d+\.\d{4}  [\d,]+ views/s  data-wait \d+%  ETA \d+:\d\d"
    assert re.fullmatch(pattern, lines[9])


def test_plain_lines_come_every_few_seconds_and_not_at_every_step(toy, tmp_path):
    text = io.StringIO()
    toy.train(tmp_path / "run", console=Console(text), readouts=())
    lines = [line for line in text.getvalue().splitlines() if line.startswith("step ")]
    assert len(lines) == 1 and lines[0].startswith("step 24/24")
    assert "\x1b" not in text.getvalue()


def test_a_terminal_gets_a_live_bar_and_readouts_above_it(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    console = Console(terminal)
    toy.train(tmp_path / "run", console=console)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "24/24" in text and "views/s" in text and "data-wait" in text and "ETA" in text
    assert "step 8/24  readout: norm" in text
    assert console.above is None
    log = (tmp_path / "run/train.log").read_text()
    assert "step 24/24  loss" in log and "\x1b" not in log


def test_the_log_file_has_every_line_with_its_time(tmp_path):
    console = Console(io.StringIO())
    console.line("before")
    console.attach(tmp_path / "train.log")
    console.warn("careful")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    lines = (tmp_path / "train.log").read_text()
    assert re.fullmatch(f"{time} before\n{time} warning: careful\n", lines)


def test_the_packages_warnings_reach_the_console_and_only_inside():
    stream = io.StringIO()
    console = Console(stream)
    with console.hearing("fastssl"):
        logging.getLogger("fastssl").warning("skipped %s", "a.jpg")
    logging.getLogger("fastssl").warning("unheard")
    assert stream.getvalue() == "warning: skipped a.jpg\n"


def test_a_closed_terminal_and_a_missing_log_folder_do_not_end_the_run(tmp_path):
    stream = io.StringIO()
    console = Console(stream)
    console.attach(tmp_path / "gone" / "train.log")
    stream.close()
    console.line("still here")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_the_stopwatch_leaves_the_first_step_out(clock):
    watch = Stopwatch()
    for compile_seconds, wait, work in ((60.0, 5.0, 1.0), (0.0, 1.0, 3.0), (0.0, 1.0, 3.0)):
        with watch.training():
            with watch.waiting():
                clock[0] += wait
            clock[0] += work + compile_seconds
            watch.views += 100
        clock[0] += 7.0  # a readout: not training time
    assert watch.data_wait == 0.25
    assert watch.views_per_second == 200 / 8
    assert watch.seconds_left(10) == 40


def test_nothing_is_said_before_there_is_something_to_say():
    watch = Stopwatch()
    assert watch.seconds_left(5) is None and watch.views_per_second == 0 and watch.data_wait == 0
    text = io.StringIO()
    with Progress(Console(text), total=3, watch=watch) as bar:
        bar.show(3, None, of_step=0)
    assert text.getvalue() == "step 3/3  \n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.2, "1:15"), (3725, "1:02:05")])
def test_times_read_like_a_clock(seconds, text):
    assert progress._clock(seconds) == text


def test_the_loss_shown_is_that_of_the_step_shown(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    texts = {every: io.StringIO() for every in (1, 24)}
    for every, text in texts.items():
        out = tmp_path / str(every)
        toy.train(out, console=Console(text), readouts=(), log_every=every)
    shown = [re.findall(r"step \d+/24  loss [\d.]+", text.getvalue()) for text in texts.values()]
    assert shown[0] == shown[1] and len(shown[0]) == 24


def test_an_older_loss_is_named_with_its_step():
    text = io.StringIO()
    with Progress(Console(text), total=30, watch=Stopwatch()) as shown:
        shown.show(30, 3.5, of_step=21)
    assert "step 30/30  loss 3.5000 (step 21)" in text.getvalue()
