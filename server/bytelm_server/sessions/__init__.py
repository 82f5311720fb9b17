"""Sessions: server-side handles to states that move.

::

    service.py    what can be done with sessions: order, versions, retries, expiry
    states.py     what a session stands at: a byte LM's state, or a token LM's
    held.py       the sessions that are in memory, and which of them leave it first
    bodies.py     what the calls take
    answers.py    what they are answered with
"""
