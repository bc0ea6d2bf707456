"""How `trackctl` shows values: pages, tables, events, verdicts."""
