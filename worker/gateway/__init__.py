"""`regworker serve`: the HTTP API for services, and pages for people, in one process."""
