"""Tests, mirroring the packages; `support` holds fixtures, workers and corpora."""
