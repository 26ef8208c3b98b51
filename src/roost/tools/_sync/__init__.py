"""The tools; see ``roost.tools``."""
