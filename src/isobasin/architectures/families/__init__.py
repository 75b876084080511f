"""One file per family of models, which states facts only; `registry` finds them."""
