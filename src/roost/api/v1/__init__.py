"""The native API: SPECIFICATION.md, section 1.

    gateway -> app (FastAPI) -> a router per noun -> one call of a service -> shapes -> JSON

``bodies`` is what may be sent, ``answers`` describes what comes back (for the OpenAPI document; ``shapes`` makes
it), ``problems`` turns every failure into the one error shape.
"""

from roost.api.v1.app import create_app, native
from roost.api.v1.services import Services

__all__ = ["Services", "create_app", "native"]
