"""Other duplicate searches, measured on the same planted copies as the own one."""
