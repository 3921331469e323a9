"""The named data sets, one file each: a record and the pure function that tidies its origin."""
