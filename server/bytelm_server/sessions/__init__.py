"""Sessions: server-side handles to states that move.

::

    service.py         all sessions of a server, from its start to its end
    calls.py           what one caller can do with them
    batch.py           many calls in one
    moves.py           how a call gets at a state, and leaves another in its place
    lives.py           how long sessions live
    replies.py         calls that are made once: answers that are kept
    continuations.py   what is generated, as answers and events
    scores.py          how likely given texts are, as answers
    rows.py            distributions along a given text, as raw numbers
    states.py          what a session stands at: a byte LM's state, or a token LM's
    held.py            the sessions that are in use or in memory, and which leave it first
    bodies.py          what the calls take
    answers.py         what they are answered with
    failures.py        what they fail with
"""
