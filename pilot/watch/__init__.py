"""The periodic looks at a running job, one file a look."""
