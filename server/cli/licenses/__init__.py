"""Commands for what a vendor sells: products, customers, licenses, seats, and the reports about them."""
