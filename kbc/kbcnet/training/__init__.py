"""Training KBCNet: recipe, where its pairs come from, objective, and the loop."""
