"""Updates the machine's products: the table of steps, its runner, the window, consent and the register."""
