"""Where labelled pictures come from: one module for each kind of source."""
