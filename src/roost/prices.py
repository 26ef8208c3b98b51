"""What use costs: the operator's table, exact decimals."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class Prices:
    """Of one unit each; zero: free."""

    currency: str = "USD"
    vcpu_second: Decimal = Decimal(0)
    memory_gib_second: Decimal = Decimal(0)
    storage_gib_hour: Decimal = Decimal(0)
    egress_gib: Decimal = Decimal(0)

    @staticmethod
    def read(text: str) -> Prices:
        """Of JSON; nothing: all is free. Raises ValueError, saying what is wrong."""
        if not text.strip():
            return Prices()
        data = json.loads(text, parse_float=Decimal, parse_int=Decimal)
        if not isinstance(data, dict):
            raise ValueError('an object such as {"vcpu_second": "0.00001"}')
        known = [field.name for field in fields(Prices)]
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name not in known:
                raise ValueError(f"{name!r} is not one of {', '.join(known)}")
            values[name] = _currency(value) if name == "currency" else _price(name, value)
        return Prices(**values)

    @property
    def free(self) -> bool:
        return not any(getattr(self, field.name) for field in fields(self)[1:])

    def to_wire(self) -> dict[str, str]:
        return {f.name: str(getattr(self, f.name)) for f in fields(self)}


def _currency(value: object) -> str:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise ValueError("currency is three capital letters, as EUR")
    return value


def _price(name: str, value: object) -> Decimal:
    try:
        price = Decimal(value) if isinstance(value, str | Decimal) else None
    except InvalidOperation:
        price = None
    if price is None or not price.is_finite() or price < 0:
        raise ValueError(f'{name} is a number from 0 on, best as text: "0.00001"')
    return price
