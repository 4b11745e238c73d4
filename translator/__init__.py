"""xDS resources to rule model, rule model to kernel image, and the reference evaluator."""
