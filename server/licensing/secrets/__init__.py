"""The agents' secrets: their versions and states, their delivery, and how long they last."""
