"""Ground floor of every page and table: words, charts, tables. It imports no probe, report or sweep."""
