"""Serving of the page: accepted requests, storage of uploads."""
