//! The table of reasons is whole.

use std::{collections::BTreeMap, fs};

use keypool_proto::v1::{ErrorReason, RejectReason, UnavailableReason};

/// The rows of the table under a heading: the reason and the cells after it.
fn table(heading: &str) -> BTreeMap<String, Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}:")).expect("the heading");
    let section = section.split("\n## ").next().unwrap();
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        let reason = cells.next()?.strip_prefix('`')?.strip_suffix('`')?.to_owned();
        Some((reason, cells.collect()))
    };
    section.lines().filter_map(row).collect()
}

/// The names of an enum without its prefix, but for the one that is never sent.
fn names(prefix: &str, name: impl Fn(i32) -> Option<&'static str>) -> Vec<String> {
    let names: Vec<String> = (1..)
        .map_while(name)
        .map(|name| name.strip_prefix(prefix).expect("the prefix").to_owned())
        .collect();
    assert!(names.len() > 2);
    names
}

fn same(heading: &str, mut names: Vec<String>, cells: usize) {
    let rows = table(heading);
    for (reason, row) in &rows {
        assert_eq!(row.len(), cells, "{reason}");
        assert!(row.iter().all(|cell| !cell.is_empty()), "{reason}");
    }
    names.sort();
    assert_eq!(rows.into_keys().collect::<Vec<_>>(), names, "{heading}");
}

#[test]
fn every_reason_is_in_its_table() {
    let error = |n| ErrorReason::try_from(n).ok().map(|reason| reason.as_str_name());
    same("ErrorReason", names("ERROR_REASON_", error), 3);
    let reject = |n| RejectReason::try_from(n).ok().map(|reason| reason.as_str_name());
    same("RejectReason", names("REJECT_REASON_", reject), 2);
    let unavailable = |n| UnavailableReason::try_from(n).ok().map(|reason| reason.as_str_name());
    same("UnavailableReason", names("UNAVAILABLE_REASON_", unavailable), 2);
}

/// The code beside a reason is the one that the contract's comment names.
#[test]
fn codes_are_those_of_the_contract() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/keypool/v1/error_reason.proto");
    let proto = fs::read_to_string(path).unwrap();
    let mut code = None;
    let mut codes = BTreeMap::new();
    for line in proto.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("// ") {
            code = comment.split_once(':').map(|(code, _)| code.to_owned());
        } else if let Some(reason) = line.strip_prefix("ERROR_REASON_") {
            codes.insert(reason.split(' ').next().unwrap().to_owned(), code.take());
        }
    }
    for (reason, row) in table("ErrorReason") {
        assert_eq!(codes[&reason].as_deref(), Some(&*row[0]), "{reason}");
    }
}
