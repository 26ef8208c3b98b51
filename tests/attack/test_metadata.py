"""38: the metadata service, in any spelling and by any way, under every policy."""

from __future__ import annotations

import pytest

from tests.system.internet import METADATA
from tests.system.internet.names import ALLOWED

from .record import case
from .rung import Attempt, Rung, request

pytestmark = [case(38), pytest.mark.own_network]

SPELLINGS = (
    "169.254.169.254",
    "2852039166",  # one number
    "0xa9fea9fe",
    "0xA9.0xFE.0xA9.0xFE",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "0xa9.254.0251.254",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
)
NAMES = (
    "metadata.test",
    "169-254-169-254.at.test",
    "169-254-169-254.alias.test",
    "169-254-170-2.at.test",
    "mapped.test",
)


def ways(fresh: str) -> list[Attempt]:
    """``fresh``: a label that was in no name before."""
    told = request(METADATA, "/latest/meta-data/")
    return [
        *({"do": "tcp", "to": each, "port": 80, "say": told} for each in SPELLINGS),
        *({"do": "tcp", "to": each, "port": 80, "say": told} for each in NAMES),
        *({"do": "url", "url": f"http://{name}/latest"} for name in NAMES),
        {"do": "url", "url": f"http://[::ffff:{METADATA}]/latest"},
        *(
            {"do": "url", "url": f"http://allowed.test/redirect?to=http://{each}/latest"}
            for each in (METADATA, "2852039166", "metadata.test")
        ),
        # The proxy is asked for it by what it reads.
        *(
            {"do": "tcp", "to": ALLOWED, "port": 80, "say": request(host, "/latest")}
            for host in (METADATA, "2852039166", "0xa9fea9fe", f"[::ffff:{METADATA}]", *NAMES)
        ),
        {
            "do": "tcp",
            "to": ALLOWED,
            "port": 80,
            "say": request("allowed.test", f"http://{METADATA}/latest"),
        },
        {
            "do": "tcp",
            "to": ALLOWED,
            "port": 80,
            "say": request(f"{METADATA}:80", f"{METADATA}:80", "CONNECT"),
        },
        *({"do": "tls", "to": ALLOWED, "name": name, "verify": False} for name in NAMES),
        # The second answer is another than the first.
        {
            "do": "shell",
            "command": f"for i in 1 2 3 4; do curl -sm 2 http://{fresh}.169-254-169-254.rebind.test/latest;"
            " done; true",
        },
        {
            "do": "shell",
            "command": f"for i in 1 2 3 4; do curl -sm 2 http://{fresh}.169-254-169-254.mixed.test/latest;"
            " done; true",
        },
        {"do": "udp", "to": METADATA, "port": 53},
        {"do": "icmp", "to": METADATA},
        {"do": "tcp", "to": "169.254.170.2", "port": 80, "say": told},
    ]


@pytest.mark.parametrize(
    "leash",
    [
        ("open",),
        ("allowlist", "allowed.test", *NAMES, "*.rebind.test", "*.mixed.test"),
        ("allowlist", f"{METADATA}:80", "169.254.0.0/16", "0.0.0.0/0"),
        ("off",),
    ],
    ids=["open", "names", "networks", "off"],
)
def test_nothing_of_it_is_reached(rung: Rung, leash: tuple[str, ...]) -> None:
    rung.leash(*leash)
    since = rung.internet.now()
    outcomes = rung.attempt(*ways(f"m{int(since * 1000)}"))
    seen = rung.internet.seen(to=METADATA, since=since)
    assert seen == [], [str(each) for each in outcomes]
    for each in outcomes:
        assert f'"server": "{METADATA}"' not in each.said, str(each)
    if leash[0] != "off" and "0.0.0.0/0" not in leash:
        assert rung.internet.seen("http", to=ALLOWED, since=since), "the redirect was answered"


def test_an_answer_keeps_no_refused_address(rung: Rung) -> None:
    for leash in (("open",), ("allowlist", "*.at.test", "*.mixed.test", "*.alias.test")):
        rung.leash(*leash)
        hidden = (
            "169-254-169-254",
            "10-0-0-1",
            "127-0-0-1",
            "192-168-77-7",
            "0-0-0-0",
            "100-64-0-1",
        )
        outcomes = rung.attempt(
            *(
                {"do": "dns", "name": f"{each}.{how}.test"}
                for each in hidden
                for how in ("at", "alias")
            ),
            *({"do": "dns", "name": f"{each}.mixed.test", "wait": 20.0} for each in hidden),
            *({"do": "names", "name": f"{each}.mixed.test"} for each in hidden),
        )
        for each in outcomes:
            for address in hidden:
                assert f'"{address.replace("-", ".")}"' not in each.said, str(each)
        mixed = [each for each in outcomes if "mixed" in str(each.attempt)]
        assert all(f'"{ALLOWED}"' in each.said for each in mixed), [str(each) for each in mixed]
