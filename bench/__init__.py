"""Scenarios that run the real client against the real server, and micro benches.  ``make bench`` runs the scenarios.

Benches never gate: they print, with the limit of this machine beside each figure.
"""
