"""Models of other libraries, and states in their form."""
