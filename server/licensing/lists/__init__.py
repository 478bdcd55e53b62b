"""Many at once: lists, tables as CSV and JSON, bulk issue; and all that is known of one agent."""
