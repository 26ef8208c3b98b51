"""What machines ask of their daemon themselves.

    a program in the machine -> its agent -> the stream that ``Links`` opened to it -> ``Requests`` -> the services

Who asks is the machine whose stream it came on, whatever is said on it: no credential, and nothing of the request says
who. What it may do is its own (look at itself) or its owner's to allow (``engine.allowance``). ``Links`` bounds how
much of the daemon one machine gets; ``Requests`` knows what can be asked; ``Forks`` remembers copies that were asked
for, since the one that asked and the copies themselves hear of them later.
"""

from roost.services.inside.links import Links
from roost.services.inside.requests import Requests

__all__ = ["Links", "Requests"]
