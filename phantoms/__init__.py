"""Generate MRI slices of known patient, duplicate set, plane and lesion mask."""
