"""Bytes behind a url: files and S3."""
