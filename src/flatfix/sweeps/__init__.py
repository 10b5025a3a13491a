"""Many runs by one command: what begins and ends a multirun."""
