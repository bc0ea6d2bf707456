"""What survives a restart: a journal and a checkpoint in SQLite, and what their records mean."""
