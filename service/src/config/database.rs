//! `[database]`.

use std::{fs, time::Duration};

use sqlx::postgres::PgConnectOptions;

use super::{
    Secret,
    source::{MILLISECOND, MINUTE, SECOND, Source},
};

/// `[database]`: where the Postgres is, and how much of it to use.
#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseSection {
    /// `url`, as in `postgres://user:password@host:5432/database`; or `url_file`, a file that
    /// holds it. One of the two is required.
    pub url: Secret,
    /// `max_connections`: at most this many connections for the calls of adders, and half as many
    /// and two more for owners and the watch. More than a few for each core of the database make it slower.
    /// Default 8.
    pub max_connections: u32,
    /// `acquire_timeout`: a call waits this long for a free connection, then is refused as
    /// OVERLOADED. Default 1s.
    pub acquire_timeout: Duration,
    /// `statement_timeout`: Postgres gives a statement up after this time. Default 5s.
    pub statement_timeout: Duration,
}

impl DatabaseSection {
    /// The defaults, for the database at `url`.
    pub fn at(url: Secret) -> Self {
        Self { url, max_connections: 8, acquire_timeout: SECOND, statement_timeout: 5 * SECOND }
    }

    pub(super) fn read(source: &mut Source) -> Option<Self> {
        let is_given = ["database.url", "database.url_file"].map(|key| source.is_given(key));
        if is_given == [true, true] {
            source.report("database", "url and url_file exclude each other");
        } else if is_given == [false, false] {
            source.report("database", "needs a url, or a url_file that holds it");
        }
        let url = source.read("database.url", |given| database_url(given.text()?));
        let from_file = source.read("database.url_file", |given| {
            let path = given.text()?;
            let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
            database_url(text.trim().into())
        });
        let url = url.or(from_file);
        let default = Self::at(url.clone().unwrap_or_else(|| Secret::new("")));
        let section = Self {
            max_connections: source.number(
                "database.max_connections",
                default.max_connections,
                1..=1000,
            ),
            acquire_timeout: source.duration(
                "database.acquire_timeout",
                default.acquire_timeout,
                MILLISECOND..=MINUTE,
            ),
            statement_timeout: source.duration(
                "database.statement_timeout",
                default.statement_timeout,
                MILLISECOND..=5 * MINUTE,
            ),
            ..default
        };
        url.map(|_| section)
    }
}

/// The parser's own message is dropped: it may repeat parts of the URL.
fn database_url(url: String) -> Result<Secret, String> {
    let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    match is_postgres && url.parse::<PgConnectOptions>().is_ok() {
        true => Ok(Secret::new(url)),
        false => Err("must hold a URL as in postgres://user@host:5432/database".into()),
    }
}
