"""Sections, charts and style of the HTML pages."""
