"""All-Age-Faces: mostly Asian faces of all ages, with the age in years and the gender."""
