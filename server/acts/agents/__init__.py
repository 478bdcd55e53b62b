"""Acts on agents: what they are, how they enroll, their secrets, and the updates that they are ordered to install."""
