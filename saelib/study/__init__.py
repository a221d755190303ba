"""The 2024 post reproduced: run table, profiles, arms and claims. A use of the other rooms, with presets."""
