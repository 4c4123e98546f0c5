"""From files to batches: events, vocabularies, splits, histories, negatives, data sets."""
