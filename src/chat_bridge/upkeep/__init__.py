"""What keeps the promises when a process died: small jobs that find work without a worker."""
