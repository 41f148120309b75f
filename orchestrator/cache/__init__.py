"""Giving recorded answers again: what may be, under which key, and how a recording becomes a run of its own."""
