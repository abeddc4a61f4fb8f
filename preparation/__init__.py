"""From an archive or a folder to class folders, a manifest, grouped splits and an audit."""
