"""reasoner: outcome-reward reinforcement learning for reasoning models, on a laptop or a cluster."""
