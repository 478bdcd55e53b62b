"""The cases in which a rotation is disturbed: where the agent can be stopped, and which requests belong to it."""

AGENT_STEPS = (
    "journal: requested",
    "delivered",
    "sealed",
    "journal: sealed",
    "confirmed",
    "journal: confirmed",
    "reissued",
    "journal: activated",
    "journal: idle",
)
PURPOSES = ("rotate-secret", "confirm-rotation", "reissue-licenses")
