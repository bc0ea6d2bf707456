"""The actors: the one writer with its inbox, and those that wake, watch and publish for it."""
