"""FairFace: faces with age range, gender and race, balanced over the races."""
