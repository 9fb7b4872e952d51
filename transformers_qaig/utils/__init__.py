"""Utilities: files that are written whole, hashes, checks for finite numbers, logging.

This room imports no other room.
"""
