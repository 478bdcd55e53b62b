"""What keeps a registry small and safe: rows that go when their time is over, backups, moves to another database."""
