"""The store: the one truth of a daemon, in SQLite (PostgreSQL later, same code).

    service/engine -> store.read(fn) / store.write(fn) -> one transaction in a thread -> the answer

``schema`` has the tables, ``migrations`` how they came to be, ``database`` the threads and transactions; the
other modules are the questions asked of one table each: functions of a ``Connection``, so that a caller can
ask several in one transaction. Nothing outside ``database`` knows which database it is.
"""

from roost.store.database import Store

__all__ = ["Store"]
