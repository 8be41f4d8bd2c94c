//! The descriptions of all metrics, from `docs/metrics.md` by way of `script/describe-metrics`: what
//! is built needs no more than this folder.

use metrics::{describe_counter, describe_gauge, describe_histogram};

const DESCRIPTIONS: &str = include_str!("descriptions.txt");

/// Name, kind and meaning of each.
fn rows() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    DESCRIPTIONS.lines().filter_map(|line| {
        let (name, rest) = line.split_once('|')?;
        let (kind, meaning) = rest.split_once('|')?;
        Some((name, kind, meaning))
    })
}

/// Gives each metric its description.
pub(super) fn describe() {
    for (name, kind, meaning) in rows() {
        match kind {
            "counter" => describe_counter!(name, meaning),
            "histogram" => describe_histogram!(name, meaning),
            _ => describe_gauge!(name, meaning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_document() {
        let document = include_str!("../../../docs/metrics.md");
        let mut expected = Vec::new();
        for line in document.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, names, kind, _, _, meaning, _] = cells[..] else { panic!("{line}") };
            let names = names.split(", ").map(|name| name.trim_matches('`'));
            expected.extend(names.map(|name| (name, kind, meaning)));
        }
        let found: Vec<_> = rows().collect();
        assert_eq!(found, expected, "run script/describe-metrics");
        let kinds = ["counter", "gauge", "cluster gauge", "histogram"];
        assert!(found.iter().all(|(_, kind, _)| kinds.contains(kind)));
    }
}
