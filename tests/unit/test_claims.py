"""Leases: one holder at a time, and none that is dead."""

from __future__ import annotations

from ppt.distributed.claims import Leases


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_at_a_time_each_thing_for_itself() -> None:
    leases = Leases()
    assert leases.acquire("stage", "a")
    assert not leases.acquire("stage", "b")
    assert leases.acquire("other stage", "b")
    leases.release("stage", "b")  # not b's to give back
    assert not leases.acquire("stage", "b")
    leases.release("stage", "a")
    assert leases.acquire("stage", "b")


def test_who_does_not_renew_loses_it() -> None:
    clock = _Clock()
    leases = Leases(seconds=10, clock=clock)
    leases.acquire("stage", "a")
    clock.now += 9
    assert leases.renew("stage", "a")
    clock.now += 9
    assert not leases.acquire("stage", "b")
    clock.now += 2
    assert leases.acquire("stage", "b")
    assert not leases.renew("stage", "a"), "a was late: it is b's now"
    leases.release("stage", "a")
    assert not leases.acquire("stage", "c")


def test_after_a_restart_holders_come_first() -> None:
    clock = _Clock()
    leases = Leases(seconds=10, closed_for=10, clock=clock)
    assert not leases.acquire("stage", "b")
    assert leases.renew("stage", "a"), "a holds it since before the restart"
    clock.now += 9
    assert leases.renew("stage", "a")
    clock.now += 2
    assert not leases.acquire("stage", "b")
    assert leases.acquire("another", "b")
