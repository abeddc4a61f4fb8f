"""The files of results/RUN: metrics.json, tables, plots, report and model card."""
