"""HOW each model works: one folder per family, all with the same verbs. See `protocols` for the roles."""
