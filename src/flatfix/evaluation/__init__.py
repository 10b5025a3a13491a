"""How good a classifier is: metrics, the qualification gate, the predictions table, figures and the report.

Pure: arrays in, plain values and files in the folder given out. Import from the modules; none is re-exported here, so
that whoever needs a metric's name does not load pyarrow and matplotlib.
"""
