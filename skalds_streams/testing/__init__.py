"""Tools for tests: of this project, and of those who use it."""
