"""What becomes of a run that qualified: versions of a registered model, what is live, and how it came there.

`mlflow` is imported by the first function that needs it: importing this package is cheap.
"""
