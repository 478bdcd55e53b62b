"""Commands for agents: what they are, how they enroll, their secrets, and identities that two machines use."""
