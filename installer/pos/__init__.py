"""What belongs to a product: its configuration that is put back, its health command, and the version that it says it is."""
