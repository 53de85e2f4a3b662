"""IMDb-Wiki: faces of well-known persons with age in years and gender."""
