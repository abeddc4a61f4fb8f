"""Generated MRI slices with known patient, slice, plane and lesion mask."""
