"""Each operator act once: who may do it, who has to approve it, what the audit says of it."""
