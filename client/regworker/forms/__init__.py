"""The registrations as typed models: one file a provider."""
