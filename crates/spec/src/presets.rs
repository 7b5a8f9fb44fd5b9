//! The run specifications that are built in, by name.

/// Name and text of each file in `chain-spec/runs/`.
const PRESETS: [(&str, &str); 8] = [
    ("dev", include_str!("../../../chain-spec/runs/dev.toml")),
    ("small", include_str!("../../../chain-spec/runs/small.toml")),
    ("genesis-7b", include_str!("../../../chain-spec/runs/genesis-7b.toml")),
    (
        "dev-fragments",
        include_str!("../../../chain-spec/runs/dev-fragments.toml"),
    ),
    ("dev-moe", include_str!("../../../chain-spec/runs/dev-moe.toml")),
    ("phase2-56b", include_str!("../../../chain-spec/runs/phase2-56b.toml")),
    ("phase3-112b", include_str!("../../../chain-spec/runs/phase3-112b.toml")),
    ("phase4-200b", include_str!("../../../chain-spec/runs/phase4-200b.toml")),
];

/// Text of a built-in run specification.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Names that [`preset`] knows.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunSpec;

    #[test]
    fn built_in_runs_should_be_valid_and_named_by_their_files() {
        for name in preset_names() {
            assert_eq!(RunSpec::parse(preset(name).unwrap()).unwrap().name, name);
        }
        assert_eq!(preset("nothing"), None);
    }
}
