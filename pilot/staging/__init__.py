"""From "these files" to "these transfers": URLs, tool choice, retries, checksums."""
