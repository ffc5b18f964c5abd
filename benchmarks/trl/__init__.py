"""TRL's GRPOTrainer as the peer of our learner and loop. `peer` runs in TRL's environment, the rest in ours.

Both configurations are beside this file: `trl.toml` and `reasoner.toml`.
"""
