"""Watching real training loops: what is captured, when the hooks leave, and that training never notices."""
