//! `docs/configuration.md`: every key, from the code that reads them and from the sample, which
//! tests hold to each other.

use std::fmt::Write as _;

use toml::Table;

use super::{
    Config,
    source::{Source, variable},
};

const SAMPLE: &str = include_str!("../../keypool.sample.toml");

const HEAD: &str = "\
# Configuration

<!-- Made by `keypool config-reference` from service/keypool.sample.toml and the code: change those. -->

`keypool` reads a TOML file, `--config FILE`, and variables of the environment, which win over it. What
is not known is refused, and `keypool check --config FILE` says what is wrong. A list in a variable is
separated by commas. Paths are relative to the folder that keypool is started in. A time is written as
`500ms`, `60s` or `1h 30m`. `log.filter` is read again when the file changes, and the files that keys name
are where it says so; all else takes a restart.
";

/// A key as the sample shows it.
struct Shown {
    key: String,
    value: String,
    /// Whether the line is commented out: there is no default.
    optional: bool,
    meaning: String,
}

/// The reference, in Markdown.
pub fn reference() -> String {
    let mut source = Source::new(Table::new(), []);
    // It lacks what is required; what it reads is all that matters here.
    let _ = Config::read(&mut source);
    let mut text = HEAD.to_owned();
    let mut section = None;
    for shown in shown() {
        let own = shown.key.split_once('.').map(|(section, _)| section.to_owned());
        if section != own {
            section = own;
            if let Some(section) = &section {
                let _ = write!(text, "\n## [{section}]\n"); // into a String: never fails
            }
        }
        let bounds = source.bounds(&shown.key);
        let kind = bounds.map_or_else(|| kind(&shown.value).to_owned(), ToOwned::to_owned);
        let default = match (shown.meaning.contains("Required"), shown.optional) {
            (true, _) => "required, or see below".to_owned(),
            (false, true) => "not set by default".to_owned(),
            (false, false) => format!("default `{}`", shown.value),
        };
        let Shown { key, meaning, .. } = &shown;
        let variable = variable(key);
        let _ =
            write!(text, "\n### {key}\n\n{kind}; {default}; variable `{variable}`\n\n{meaning}\n");
    }
    text
}

fn kind(value: &str) -> &'static str {
    match value.chars().next() {
        Some('[') => "List",
        Some('t' | 'f') => "`true` or `false`",
        Some('"') => "Text",
        _ => "Number",
    }
}

/// The keys of the sample, in its order. A key without a comment of its own shares that before it.
fn shown() -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let (mut section, mut comment) = (String::new(), Vec::new());
    for line in SAMPLE.lines() {
        let commented = line.strip_prefix("# ");
        let code = commented.unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
            comment.clear();
        } else if let Some((key, value)) = code.split_once(" = ").filter(|(key, _)| is_key(key)) {
            let own = comment.join("\n");
            let meaning = match own.is_empty() {
                true => found.last().map(|last| last.meaning.clone()).unwrap_or_default(),
                false => own,
            };
            let (key, value) = (format!("{section}{key}"), value.to_owned());
            found.push(Shown { key, value, optional: commented.is_some(), meaning });
            comment.clear();
        } else if let Some(text) = commented {
            comment.push(text.to_owned());
        } else if line.is_empty() {
            comment.clear();
        }
    }
    found
}

fn is_key(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_reference_is_what_the_code_says() {
        let committed = include_str!("../../../docs/configuration.md");
        assert!(committed == reference(), "run: keypool config-reference > docs/configuration.md");
    }

    #[test]
    fn it_has_every_key_that_is_read_and_says_what_each_means() {
        let mut source = Source::new(Table::new(), []);
        let _ = Config::read(&mut source);
        let shown = shown();
        let keys: std::collections::BTreeSet<&str> = shown.iter().map(|it| &*it.key).collect();
        assert_eq!(keys, source.known().iter().copied().collect());
        for Shown { key, meaning, .. } in &shown {
            assert!(meaning.len() > 10, "{key}: {meaning:?}");
        }
    }
}
