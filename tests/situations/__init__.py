"""Every verb in many situations, each judged by what transformers computes: `make situations`."""
