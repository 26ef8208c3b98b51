"""Services: the one door to everything Roost does.

Every way in (native API, dialects, MCP) calls these and nothing below them. They know tenants, check what
they are given, raise the errors of ``roost.errors`` and know no HTTP.
"""
