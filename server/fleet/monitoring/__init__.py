"""Observes fleets interval by interval, judges what was observed, and keeps the alerts that follow. No HTTP."""
