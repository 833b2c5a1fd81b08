"""Records in time with one or more leads, such as an electrocardiogram."""
