"""Results: rows, tables, leaderboards, published numbers."""
