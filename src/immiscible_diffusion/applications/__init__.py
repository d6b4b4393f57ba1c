"""What this package is applied to, each with its Task, data, network and evaluator."""
