"""Several ledgers at a time: a layer above the shells of single ones, for producers and readers."""
