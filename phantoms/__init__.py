"""Generate synthetic MRI slices with known patient, duplicate set, plane and lesion mask."""
