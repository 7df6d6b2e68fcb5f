"""From a sweep file to trials."""
