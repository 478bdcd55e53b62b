"""What an agent says at a contact besides its rotation, and the replies: capabilities, licenses, seats, usage, updates."""
