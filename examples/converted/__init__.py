"""Models of other packages, trained before and after lsnn_ext.convert."""
