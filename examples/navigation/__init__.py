"""Navigation: a hidden goal that is found and remembered, with PPO."""
