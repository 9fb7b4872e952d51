"""The report's page: one HTML file with everything in it, which needs no network.

`page.py` puts it together. The other files draw one part each, as text. Whatever comes from a record is escaped.
"""
