"""Updates the machine's products: the table of steps, the window, consent and the register."""
