"""How a policy is evaluated and differentiated."""
