"""Tests of stores; a package, so that its test_conformance is not that of another folder."""
