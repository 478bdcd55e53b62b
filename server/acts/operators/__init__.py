"""Acts on operators and what they look after: accounts, approvals, emergency access, reports, events, webhooks, keys."""
