"""Executing one agent step: the upstream conversation, its transcript, and taking over from a lost attempt."""
