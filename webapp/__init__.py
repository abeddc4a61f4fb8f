"""The local web page that predicts dropped images."""
