"""Acts on what a vendor sells: products, customers, licenses, seats, usage."""
