"""Commands for operators: accounts, sign-in, and what they follow: the audit log, events, webhooks."""
