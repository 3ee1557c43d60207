"""Lines from the files of a running job to where people read them: tail, mask, batch, send, count what is lost."""
