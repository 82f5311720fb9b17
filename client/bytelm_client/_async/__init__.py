"""What is awaited. ``_sync`` is made from this by ``client/unasync.py``: change it here only.

::

    client.py    the client: calls that need no session
    session.py   handles to states on the server
    stream.py    bytes as they come
"""
