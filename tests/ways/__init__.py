"""Tests of ways to train, each really run; docs/ways.md names them."""
