"""The paper's protocol: train, re-initialise, fine-tune, match, measure, ablate (arXiv 2606.17830, section 5)."""
