"""Answers as HTML, in both languages at once."""
