"""What time it is: for verdicts, without a network, and by what the server has signed."""
