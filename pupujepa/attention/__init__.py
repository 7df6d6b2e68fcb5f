"""Attention of the predictor: maps, regions, pictures, a page."""
