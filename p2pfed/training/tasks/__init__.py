"""The tasks that come with p2pfed, one for each form in which hospitals have their records."""
