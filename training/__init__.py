"""Training of AdcVSR students: data, losses, recipes, the trainer and the evaluation. Nothing imports this package."""
