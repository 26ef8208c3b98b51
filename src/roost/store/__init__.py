"""The store: the one truth of a daemon, in SQLite.

    service/engine -> store.read(fn) / store.write(fn) -> one transaction in a thread -> the answer

``schema`` has the tables, ``migrations`` how they came to be, ``database`` the threads and transactions; the
other modules are the questions asked of one table each: functions of a ``Connection``, so that a caller can
ask several in one transaction. What is SQLite's own stands in ``sqlite``, and in ``schema`` where its columns count by
themselves; the questions are portable SQL, which was tried on no other database.
"""

from roost.store.database import Store

__all__ = ["Store"]
