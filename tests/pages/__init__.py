"""The documentation, run: every block of Python and of commands does what its page says."""
