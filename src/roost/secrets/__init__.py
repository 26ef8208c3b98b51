"""Secrets that a machine uses and never sees.

    secret.py     what one is, and what may be one: pure
    vault.py      values as they lie in the database: encrypted
    authority.py  a machine's own certificate authority
    keeper.py     knows which machines have any, tells the boundary, says which names lead there
    process.py    the boundary's process, from the daemon's side
    trust.py      the authority put where the machine's programs look for it
    boundary/     what runs in that process, in an environment of its own (mitmproxy's pins clash with others'):
                  it imports nothing of ours

A connection that proves a name with a secret goes from the egress process to the boundary, which speaks TLS with both
sides, adds the value to what is asked and lays stars over it in what is answered. Values leave the database for the
boundary's memory alone.
"""

from roost.secrets.secret import Secret, SecretSpec

__all__ = ["Secret", "SecretSpec"]
