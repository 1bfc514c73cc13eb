"""Feed-forward neurons are grouped into experts of equal size; a router chooses some of the experts for each token."""
