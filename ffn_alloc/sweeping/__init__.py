"""Many runs: which there are to be, how far each is, and what starts them."""
