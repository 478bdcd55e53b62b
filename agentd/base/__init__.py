"""What every other room may use: configuration, identity, clock, hardware, rate limits, journal. Imports no other room."""
