"""A large model that stays as it is, and small trained parts that travel."""
