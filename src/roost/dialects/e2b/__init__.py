"""E2B's API: its control plane (``control``) and what is spoken inside a sandbox (``envd``), in one dialect.

A sandbox is a machine, whoever made it. ``access`` says which one a request is for and what proves that it may;
``app`` puts both halves together for the gateway.
"""
