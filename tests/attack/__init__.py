"""Attacks from inside a machine and at its ports, each on every rung that claims a boundary. What counts is what the
other side saw: the attacker's record, the metadata service's, the resolver's, the neighbour's.
"""
