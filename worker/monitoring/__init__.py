"""What an installation reports: snapshot, metrics, liveness, heartbeat."""
