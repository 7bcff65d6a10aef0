"""Device profiles: one TOML file each; skerry_edge.profile says what they hold."""
