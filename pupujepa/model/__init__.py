"""The model: patches, positions, blocks, student, teacher and predictor."""
