"""Copies of a database's collections: read from it, kept fresh by the writes that pass, compared now and then."""
