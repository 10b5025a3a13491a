"""A model behind HTTP: it follows an alias of the registry, and answers pictures fast."""
