"""What a job is, what it can come to, and the errors: rules without any I/O."""
