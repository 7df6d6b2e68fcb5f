"""The evaluation's corpora and labels."""
