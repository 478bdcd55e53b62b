"""What a vendor sells, and to whom: products, policies, orders, customers, the terms of floating licenses."""
