"""Events keep their order and their places whatever the clock does, also across a daemon's death."""

import json
import time
from pathlib import Path

import pytest
from moorage_guest.events import EventBus

DAY = 86_400_000_000_000


def test_events_after_the_clock_was_set_back_bear_the_time_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = EventBus()
    now = time.time_ns()
    for clock in (now, now + DAY, now + 1000, now + 2000):
        monkeypatch.setattr(time, "time_ns", lambda clock=clock: clock)
        bus.publish("container", str(clock), "one")
    assert [event.time_ns for event in bus.history()] == [now, now + DAY, now + 1000, now + 2000]
    assert [event.action for event in bus.history(until_ns=now + 3000)] == [str(now), str(now + 1000), str(now + 2000)]


def test_what_happened_while_nobody_watched_stays_behind_what_is_known() -> None:
    bus = EventBus()
    first = bus.publish("container", "start", "one")
    assert bus.publish("container", "die", "one", time_ns=first.time_ns - 5).time_ns == first.time_ns + 1


def test_replay_goes_by_number_across_daemons_and_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "events.jsonl"
    bus = EventBus(journal)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + DAY)
    seen = bus.publish("container", "before", "one").number
    bus.close()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    bus = EventBus(journal)
    bus.publish("container", "after", "one")
    bus.close()
    assert [event.action for event in EventBus(journal).after(seen)] == ["after"]


def test_the_journal_of_an_engine_that_did_not_count_is_read(tmp_path: Path) -> None:
    journal = tmp_path / "events.jsonl"
    lines = [{"type": "image", "action": str(n), "id": "x", "attributes": {}, "ns": n} for n in range(3)]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bus = EventBus(journal)
    assert [event.number for event in bus.history()] == [1, 2, 3]
    assert bus.publish("image", "tag", "x").number == 4
