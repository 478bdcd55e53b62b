"""Sign-in of people with an OpenID provider: its configuration, its keys, and its tokens."""
