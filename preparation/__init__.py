"""Turn an archive or folder into class folders, a manifest, grouped splits and an audit."""
