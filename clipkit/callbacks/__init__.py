"""What happens around the steps: agreement of ranks, accounts of the data, figures, evaluation, checkpoints.

They act at the end of a step in the order in which ``clipkit.training`` lists them: the position advances first, the checkpoint comes last.
"""
