"""Training one multitask model: recipe, examples, schedule, model, loss, trainer."""
