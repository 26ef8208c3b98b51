"""Roost: a machine for every agent to come home to."""
