"""What happens to a license: its states, its history, the changes that its agent learns of, trials."""
