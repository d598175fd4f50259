"""One step each: attempt, decision, delivery, leases, alarms, retention."""
