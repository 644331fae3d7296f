"""Mathematics on arrays and callables: no policy, no environment, no logging."""
