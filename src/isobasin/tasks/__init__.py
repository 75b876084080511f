"""Real data → batches → losses: what models are measured and trained on."""
