"""Looks for broken invariants in the books: SQL that reads everything and trusts no CHECK. Changes nothing."""

from __future__ import annotations

from sqlalchemy import Connection, text

from danqing.db.engines import patient

# What a transfer does to the balance. A resolve first returns what was held.
_BALANCES = """
SELECT * FROM (
    SELECT a.id, a.name, a.balance, COALESCE(SUM(
        CASE t.kind
            WHEN 'grant' THEN t.amount
            WHEN 'adjust' THEN t.amount
            WHEN 'hold' THEN -t.amount
            WHEN 'post' THEN h.amount - t.amount
            ELSE h.amount
        END), 0) AS booked
    FROM accounts a
    LEFT JOIN transfers t ON t.account_id = a.id
    LEFT JOIN transfers h ON h.id = t.hold_id
    GROUP BY a.id, a.name, a.balance
) AS books
WHERE balance <> booked OR balance < 0
"""

_RESOLVES_WITHOUT_HOLD = """
SELECT t.id, t.kind FROM transfers t LEFT JOIN transfers h ON h.id = t.hold_id
WHERE t.kind IN ('post', 'void', 'expire')
  AND (h.id IS NULL OR h.kind <> 'hold' OR h.account_id <> t.account_id OR h.task_id <> t.task_id)
"""

_RESOLVES_OF_ANOTHER_AMOUNT = """
SELECT t.id, t.kind, t.amount, h.amount AS held FROM transfers t JOIN transfers h ON h.id = t.hold_id
WHERE t.amount <= 0 OR t.amount > h.amount OR (t.kind <> 'post' AND t.amount <> h.amount)
"""

_HOLDS_RESOLVED_TWICE = """
SELECT hold_id, COUNT(*) AS resolves FROM transfers
WHERE hold_id IS NOT NULL GROUP BY hold_id HAVING COUNT(*) > 1
"""

_HOLDS_WITHOUT_TASK = """
SELECT h.id FROM transfers h LEFT JOIN tasks k ON k.hold_id = h.id
WHERE h.kind = 'hold' AND (k.id IS NULL OR k.id <> h.task_id OR k.account_id <> h.account_id)
"""

_TASKS_AGAINST_HOLD = """
SELECT k.id, k.state, k.charged, r.kind FROM tasks k
LEFT JOIN transfers h ON h.id = k.hold_id AND h.kind = 'hold'
LEFT JOIN transfers r ON r.hold_id = k.hold_id
WHERE (k.hold_id IS NOT NULL AND h.id IS NULL)
   OR (k.hold_id IS NOT NULL AND (k.state IN ('queued', 'running')) <> (r.id IS NULL))
   OR k.charged <> (CASE WHEN r.kind = 'post' THEN r.amount ELSE 0 END)
"""

_IMAGES_OF_OTHERS = """
SELECT i.id, i.task_id FROM images i LEFT JOIN tasks k ON k.id = i.task_id
WHERE k.id IS NULL OR k.account_id <> i.account_id OR k.state IN ('queued', 'running')
"""

_INVARIANTS = (
    (_BALANCES, "account {name} ({id}): balance {balance}, but its transfers make {booked}"),
    (_RESOLVES_WITHOUT_HOLD, "{kind} {id} has no hold of its account and task"),
    (_RESOLVES_OF_ANOTHER_AMOUNT, "{kind} {id} is of {amount}, its hold of {held}"),
    (_HOLDS_RESOLVED_TWICE, "hold {hold_id} is resolved {resolves} times"),
    (_HOLDS_WITHOUT_TASK, "hold {id} has no task that says so"),
    (_TASKS_AGAINST_HOLD, "task {id} is {state}, charged {charged}; its hold says {kind}"),
    (_IMAGES_OF_OTHERS, "image {id} has no ended task {task_id} of its account"),
)


def faults(conn: Connection) -> list[str]:
    """One line per broken invariant (see docs of the ledger); empty when the books balance."""
    patient(conn)
    return [
        line.format(**row)
        for statement, line in _INVARIANTS
        for row in conn.execute(text(statement)).mappings()
    ]
