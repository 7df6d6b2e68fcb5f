"""What the model attends to: maps, regions, pictures, a page."""
