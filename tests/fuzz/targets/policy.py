"""An egress policy as JSON: refused in words, or it says of itself what it is, and opens nothing by being read again."""

from __future__ import annotations

import json

from roost.egress.edit import edited
from roost.egress.policy import Policy, Reach, clean_name, private_ranges
from roost.errors import RoostError

COVERS = ("roost.egress.policy", "roost.egress.edit")
SEEDS = (
    b'"open"',
    b'{"mode": "allowlist", "allow": ["a.example:80,443", "*.b.example", "192.0.2.0/24:53/udp"], "observe": true}',
    b'{"allow": ["10.0.0.1"]}',
    b'["b\\u00fccher.example"]',
    b'"10.0.0.0/8, 192.168.0.0/16"',
)
WORDS = (
    b'"mode": ',
    b'"allow": ',
    b"allowlist",
    b'"observe": ',
    b"*.",
    b"/udp",
    b"/tcp",
    b":443",
    b"\\u",
)


def one(data: bytes) -> None:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    for text in said if isinstance(said, list) else [said]:
        if isinstance(text, str):
            name = clean_name(text)
            assert name is None or clean_name(name) == name
            try:
                ranges = private_ranges(text)
            except ValueError:
                ranges = ()
            assert not Reach(ranges).permits("169.254.169.254")
    try:
        policy = Policy.read(said)
    except RoostError:
        return
    again = Policy.read(json.loads(json.dumps(policy.to_json())))
    assert again == policy
    try:
        assert edited(policy, allow=policy.to_json()["allow"]).allow == policy.allow
    except RoostError:
        assert not policy.allow
    for entry in policy.allow:
        if entry.name is not None and not entry.name.startswith("*."):
            assert policy.allows_name(entry.name)
