"""Tortures: what must not break streamgd, tried many times with a seed."""
