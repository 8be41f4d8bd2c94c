//! The raw configuration: what the file and the environment say, key by key.
//!
//! Every problem is collected, so that one look tells them all. No value of a key is ever
//! repeated in a message: it may be a secret, or sit where a secret was meant to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::SocketAddr,
    ops::RangeInclusive,
    time::Duration,
};

use toml::{Table, Value};

use super::Finding;

const PREFIX: &str = "KEYPOOL_";

/// Names the configuration file, not a key.
const CONFIG_VARIABLE: &str = "KEYPOOL_CONFIG";

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A value as it was given.
pub(super) enum Given {
    File(Value),
    Variable(String),
}

impl Given {
    /// A text, not empty.
    pub(super) fn text(self) -> Result<String, String> {
        match self {
            Self::File(Value::String(text)) | Self::Variable(text) if !text.is_empty() => Ok(text),
            _ => Err("must be a text, not empty".into()),
        }
    }

    /// A whole number; `0x` introduces a hexadecimal one.
    pub(super) fn boolean(self) -> Result<bool, String> {
        match self {
            Self::File(toml::Value::Boolean(value)) => Ok(value),
            Self::Variable(text) if text == "true" => Ok(true),
            Self::Variable(text) if text == "false" => Ok(false),
            _ => Err("must be true or false".into()),
        }
    }

    pub(super) fn integer(self) -> Result<u64, String> {
        let number = match self {
            Self::File(Value::Integer(number)) => u64::try_from(number).ok(),
            Self::Variable(text) => match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            },
            Self::File(_) => None,
        };
        number.ok_or_else(|| "must be a whole number".into())
    }

    /// A number that need not be whole.
    pub(super) fn float(self) -> Result<f64, String> {
        let number = match self {
            Self::File(Value::Float(number)) => Some(number),
            Self::Variable(text) => text.parse().ok(),
            Self::File(_) => None,
        };
        number.ok_or_else(|| "must be a number, as in 0.1".into())
    }

    /// A list; in a variable its items are separated by commas.
    pub(super) fn list(self) -> Result<Vec<Given>, String> {
        match self {
            Self::File(Value::Array(items)) => Ok(items.into_iter().map(Self::File).collect()),
            Self::Variable(text) => {
                Ok(text.split(',').map(|item| Self::Variable(item.trim().into())).collect())
            }
            Self::File(_) => Err("must be a list, as in [1, 2]".into()),
        }
    }

    fn name(&self, key: &str) -> String {
        match self {
            Self::File(_) => key.into(),
            Self::Variable(_) => variable(key),
        }
    }
}

/// The variable that stands for a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// What the file and the environment say; keys leave it as they are read.
pub(super) struct Source {
    given: BTreeMap<String, Given>,
    empty_tables: Vec<String>,
    known: BTreeSet<&'static str>,
    /// What the keys hold that have bounds, and which.
    bounds: BTreeMap<&'static str, String>,
    findings: Vec<Finding>,
}

impl Source {
    /// The variables win over the file.
    pub(super) fn new(
        file: Table,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut source = Self {
            given: BTreeMap::new(),
            empty_tables: Vec::new(),
            known: BTreeSet::new(),
            bounds: BTreeMap::new(),
            findings: Vec::new(),
        };
        source.add_table("", file);
        for (name, value) in environment {
            source.add_variable(name, value);
        }
        source
    }

    fn add_table(&mut self, prefix: &str, table: Table) {
        for (key, value) in table {
            // A quoted key may hold dots of its own: it must not pass for a path.
            let key = if key.contains('.') { format!("{key:?}") } else { key };
            let path = format!("{prefix}{key}");
            match value {
                Value::Table(table) if table.is_empty() => self.empty_tables.push(path),
                Value::Table(table) => self.add_table(&format!("{path}."), table),
                value => {
                    self.given.insert(path, Given::File(value));
                }
            }
        }
    }

    fn add_variable(&mut self, name: OsString, value: OsString) {
        let name = name.to_string_lossy();
        let Some(key) = name.strip_prefix(PREFIX) else { return };
        if name == CONFIG_VARIABLE || is_service_link(key) {
            return;
        }
        match value.into_string() {
            Ok(value) => {
                let key = key.to_lowercase().replace("__", ".");
                self.given.insert(key, Given::Variable(value));
            }
            Err(_) => self.report(name, "is not valid UTF-8"),
        }
    }

    /// Whether a key is there, right or wrong.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Reads a key; `None` when it is not given, or is wrong, which is reported.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(Given) -> Result<T, String>,
    ) -> Option<T> {
        self.known.insert(key);
        let given = self.given.remove(key)?;
        let name = given.name(key);
        parse(given).map_err(|message| self.report(name, message)).ok()
    }

    /// Reads a number within bounds.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: u32,
        bounds: RangeInclusive<u32>,
    ) -> u32 {
        self.bounds.insert(key, format!("Number, {} to {}", bounds.start(), bounds.end()));
        self.read(key, |given| {
            let number = u32::try_from(given.integer()?).ok().filter(|n| bounds.contains(n));
            number.ok_or_else(|| format!("must be {} to {}", bounds.start(), bounds.end()))
        })
        .unwrap_or(default)
    }

    /// Reads a duration within bounds.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let [start, end] = [bounds.start(), bounds.end()].map(|d| humantime::format_duration(*d));
        self.bounds.insert(key, format!("Time, {start} to {end}"));
        self.read(key, |given| {
            let duration = given.text().ok().and_then(|text| humantime::parse_duration(&text).ok());
            let duration = duration.ok_or("must be a duration, as in \"60s\" or \"1h 30m\"")?;
            if bounds.contains(&duration) {
                return Ok(duration);
            }
            let [start, end] =
                [bounds.start(), bounds.end()].map(|d| humantime::format_duration(*d));
            Err(format!("must be {start} to {end}"))
        })
        .unwrap_or(default)
    }

    /// Reads an address with its port.
    pub(super) fn address(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.read(key, |given| {
            let address = given.text().ok().and_then(|text| text.parse().ok());
            address.ok_or_else(|| "must be an address, as in \"0.0.0.0:50051\"".into())
        })
    }

    /// Reports a problem with a key or variable.
    pub(super) fn report(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::new(subject, message));
    }

    /// Whether nothing was reported so far.
    pub(super) fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) fn known(&self) -> &BTreeSet<&'static str> {
        &self.known
    }

    /// What a key holds that has bounds, and which, as in "Number, 1 to 64".
    pub(super) fn bounds(&self, key: &str) -> Option<&str> {
        self.bounds.get(key).map(String::as_str)
    }

    /// What was reported, and every key and table that nobody asked for.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        for (key, given) in &self.given {
            let message = match section_keys(&self.known, key) {
                Some(_) => format!("must be a table, as in [{key}]"),
                None => unknown(&self.known, key, given),
            };
            self.findings.push(Finding::new(given.name(key), message));
        }
        for table in &self.empty_tables {
            if section_keys(&self.known, table).is_none() {
                self.findings.push(Finding::new(format!("[{table}]"), "unknown section"));
            }
        }
        self.findings
    }
}

/// The known keys of a section, separated by commas; `None` when there is no such section.
fn section_keys(known: &BTreeSet<&'static str>, section: &str) -> Option<String> {
    let keys = known.iter().filter_map(|key| key.strip_prefix(section)?.strip_prefix('.'));
    let keys: Vec<&str> = keys.collect();
    (!keys.is_empty()).then(|| keys.join(", "))
}

fn unknown(known: &BTreeSet<&'static str>, key: &str, given: &Given) -> String {
    let squash = |key: &str| key.replace(['.', '_'], "").to_lowercase();
    if let Some(meant) = known.iter().find(|known| squash(known) == squash(key)) {
        return format!("unknown; did you mean {}?", given.name(meant));
    }
    let section = key.split_once('.').map_or("", |(section, _)| section);
    match section_keys(known, section) {
        Some(keys) => format!("unknown key; [{section}] has {keys}"),
        None => "unknown key".into(),
    }
}

/// Kubernetes puts `<SERVICE>_SERVICE_HOST`, `<SERVICE>_PORT_50051_TCP_ADDR` and the like into
/// every pod: a Service named `keypool` must not keep keypool from starting.
fn is_service_link(key: &str) -> bool {
    !key.contains("__")
        && (["SERVICE_HOST", "SERVICE_PORT"].iter().any(|part| key.contains(part))
            || key == "PORT"
            || key.ends_with("_PORT")
            || key
                .split_once("PORT_")
                .is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit())))
}
