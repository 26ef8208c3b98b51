"""Parsers of what strangers send, fed with what a coverage-guided fuzzer makes up.

    targets/NAME.py      one parser: ``SEEDS``, and ``one(data)``, which raises where a promise is broken
    corpora/NAME.txt     inputs that reach what the seeds do not, one a line in base64
    regressions/NAME/    inputs that once broke a promise, as they were
    __main__.py          the fuzzer (atheris) over one target

Ordinary tests replay all of it and fuzz each target for a moment, always from the same seed of chance; what runs long
is started by hand: ``scripts/fuzz``. The agent's decoders have their own, in ``agent/fuzz``.
"""
