"""What makes a device an agent: enrollment token, evidence of its hardware, the messages."""
