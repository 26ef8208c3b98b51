"""Machines as the tools that model providers define: what the model asks for is done, the answer is in their shape.

    roost.tools.anthropic   bash, text editor and computer of the Messages API
    roost.tools.openai      function tools of Chat Completions and Responses; the computer tool of Responses

Neither needs its provider's SDK: requests and answers are dicts, blocks of an SDK are read as well. Each has
``Tools`` and ``AsyncTools``, which take a machine.

    Tools -> Shell (a bash that keeps its state), Editor (m.files), Screen (m.computer), Browser (m.browser) -> the machine

``_async/`` is the source, ``_sync/`` is generated from it by ``scripts/unasync.py``. What has no I/O is shared:
``_text`` (bounds, edits), ``_errors`` (what the model reads), ``_blocks``.
"""
