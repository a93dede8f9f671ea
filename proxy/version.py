"""Which version this is, as pyproject.toml has it: asking the installed package takes a megabyte and 10 ms."""

VERSION = "0.1.0"
