"""What several workers do, on a terminal and in a pipe."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from tpdist.training import progress
from tpdist.training.progress import Live, Plain, Status, together
from tpdist.training.workers_view import WorkerFigures, lines, table

STATUS = Status(2, 5, 30, 100, 4.5, 90.017, 0.123456, 0.000321, 12345.6, 65.0)


def work(rank: int) -> WorkerFigures:
    return WorkerFigures(rank, "alpha", 1000.0 + rank, 0.02, 0.1, 1000 + rank)


TWO = (work(0), WorkerFigures(1, "beta", 999.4, 0.0, 0.5, 2_500_000))


def shown(workers: tuple[WorkerFigures, ...], width: int = 80) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=width, highlight=False).print(table(workers))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def on_hosts(count: int, hosts: int) -> tuple[WorkerFigures, ...]:
    return tuple(replace(work(rank), host=f"host{rank * hosts // count}") for rank in range(count))


def test_a_row_a_worker() -> None:
    assert shown((TWO[1], TWO[0])) == [
        "worker  host   tokens/s  waits: neighbours  gradients    sent",
        "     0  alpha     1,000               2.0%      10.0%  1.0 kB",
        "     1  beta        999               0.0%      50.0%  2.5 MB",
    ]


def test_a_long_host_name_gives_way_at_80_columns() -> None:
    rows = shown(tuple(replace(one, host="node-17.rack-4.datacentre.example.org") for one in TWO))
    assert all(len(row) <= 80 for row in rows)
    assert [row[-6:] for row in rows] == ["  sent", "1.0 kB", "2.5 MB"]


def test_many_workers_are_added_up_by_host() -> None:
    workers = tuple(replace(one, neighbours=one.rank / 100) for one in on_hosts(64, 4))
    rows = shown((*workers[::2], *workers[1::2]))
    assert rows[0].split() == ["workers", "host", "tokens/s", "waits:", "neighbours", "gradients", "sent"]
    assert rows[2].split() == ["16-31", "host1", "16,376", "16.0%", "to", "31.0%", "10.0%", "16.4", "kB"]
    assert len(rows) == 5
    assert all(len(row) <= 80 for row in rows)


def test_workers_of_one_host_that_are_not_in_a_row() -> None:
    workers = tuple(replace(one, host="ab"[one.rank % 5 == 3]) for one in on_hosts(17, 1))
    assert [row.split()[:4] for row in shown(workers)][1:] == [
        ["0-2,", "4-7,", "9-12,", "14-16"],
        ["3,", "8,", "13", "b"],
    ]


@pytest.mark.parametrize("hosts", [1, 20])
def test_of_many_workers_elsewhere_those_that_wait_least(hosts: int) -> None:
    workers = tuple(replace(one, reduction=(one.rank * 7 % 20) / 100) for one in on_hosts(20, hosts))
    rows = shown(workers)
    assert len(rows) == 1 + 16 + 1
    least = sorted(range(20), key=lambda rank: rank * 7 % 20)[:16]
    assert [int(row.split()[0]) for row in rows[1:-1]] == sorted(least)
    assert rows[-1] == "the 16 of 20 workers that wait least: the others wait for them"


def test_lines_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    Plain().step(replace(STATUS, workers=TWO))
    assert capsys.readouterr().out == (
        f"  step 30/100  {STATUS.text()}\n"
        "    worker 0 on alpha: 1,000 tok/s; waits 2.0% for neighbours, 10.0% for gradients; sent 1.0 kB\n"
        "    worker 1 on beta: 999 tok/s; waits 0.0% for neighbours, 50.0% for gradients; sent 2.5 MB\n"
    )


def test_one_line_for_many_workers() -> None:
    assert lines(on_hosts(9, 2)) == [
        "9 workers on 2 hosts: 1,000 to 1,008 tok/s each; waits 2.0% for neighbours, 10.0% for gradients; sent 9.0 kB"
    ]


def test_the_live_table_is_beneath_the_bar() -> None:
    screen = io.StringIO()
    live = Live(Console(file=screen, force_terminal=True, width=80, highlight=False))
    live.step(replace(STATUS, workers=TWO))
    live.say("above both")
    live.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "above both\n" in text
    last = [line.rstrip() for line in text[text.rindex(" 30%") :].splitlines()]
    assert last[0] == " 30%  epoch 2/5  12,346 tok/s  1:05 left"
    assert last[1].strip() == "loss 4.500  ppl 90.0  |r| 0.123  |s| 0.000321"
    assert last[2:5] == shown(TWO)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color(no_color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    live = Live(Console(file=screen, force_terminal=True, width=140, highlight=False))
    live.step(replace(STATUS, workers=TWO))
    live.close()
    colours = re.search(r"\x1b\[[0-9;]*\b(3[0-7]|38|9[0-7])\b[0-9;]*m", screen.getvalue())
    assert (colours is None) == bool(no_color)


def test_the_leaders_status_and_everybodys_work() -> None:
    statuses = [replace(STATUS, step=step, workers=(one,)) for step, one in enumerate(TWO)]
    assert together(statuses) == replace(STATUS, step=0, workers=TWO)
    assert together([statuses[0], None]) == statuses[0]
    assert together([None, statuses[1]]) is None
    assert together([]) is None
