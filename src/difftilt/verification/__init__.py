"""The truth table: what each method really samples, against the law that it claims, on problems with exact answers."""
