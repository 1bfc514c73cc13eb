"""Feed-forward neurons grouped into experts of equal size, of which a router chooses some for each token."""
