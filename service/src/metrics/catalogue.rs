//! The descriptions of all metrics, as `docs/metrics.md` has them.

use metrics::{describe_counter, describe_gauge, describe_histogram};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// A row of the document.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    kind: &'static str,
    meaning: &'static str,
}

fn rows() -> impl Iterator<Item = Row> {
    DOCUMENT.lines().filter_map(row).flatten()
}

/// What a line of a table says: of one metric, or of several that share a line.
fn row(line: &'static str) -> Option<impl Iterator<Item = Row>> {
    let cells: Vec<&str> = line.strip_prefix("| `")?.trim_end_matches(" |").split(" | ").collect();
    let [names, kind, _unit, .., meaning] = cells[..] else { return None };
    let names = names.split(", ").map(|name| name.trim_matches('`'));
    Some(names.map(move |name| Row { name, kind, meaning }))
}

/// Gives each metric its description.
pub(super) fn describe() {
    for Row { name, kind, meaning } in rows() {
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
    fn every_row_has_a_known_kind_and_says_something() {
        let kinds = ["counter", "gauge", "cluster gauge", "histogram"];
        for Row { name, kind, meaning } in rows() {
            assert!(kinds.contains(&kind), "{name}: {kind:?}");
            assert!(meaning.len() > 5, "{name}: {meaning:?}");
        }
        assert!(rows().count() > 40);
    }
}
