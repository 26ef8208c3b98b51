from __future__ import annotations

from roost.egress.ledger import Ledger


def test_the_same_is_merged_and_the_oldest_forgotten() -> None:
    now = [0.0]
    ledger = Ledger(limit=3, clock=lambda: now[0])
    for second, host in enumerate(["a", "b", "a", "c", "d"], 1):
        now[0] = float(second)
        ledger.note(host, 443, "tls", "not_allowed")
    assert [(each.host, each.count, each.first_at, each.last_at) for each in ledger.rows()] == [
        ("a", 2, 1.0, 3.0),
        ("c", 1, 4.0, 4.0),
        ("d", 1, 5.0, 5.0),
    ]


def test_what_differs_is_kept_apart() -> None:
    ledger = Ledger()
    ledger.note("a", 443, "tls", "")
    ledger.note("a", 443, "tls", "private")
    ledger.note("a", 80, "http", "")
    ledger.note("a", 53, "dns", "", "udp")
    assert [(each.allowed, each.reason) for each in ledger.rows()] == [
        (True, ""),
        (False, "private"),
        (True, ""),
        (True, ""),
    ]
