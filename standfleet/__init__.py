"""Many virtual agents in one process: they ask a license server over the public wire, sign, and fail as wished."""
