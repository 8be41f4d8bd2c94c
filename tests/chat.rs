//! The chat example with keypool itself, as people use it: processes, files, a real server. Any of
//! them may be killed at any time, and when it is there again, whoever was invited is in.

mod moments;
mod person;
mod steps;

use std::{collections::BTreeMap, fs, path::Path};

use keypool_client::{MetadataStore as _, SqliteMetadataStore};
use keypool_service::store::MIGRATOR;
use keypool_testing::{
    database::TestDatabase,
    server::{Server, ServerOptions, until},
};
use person::Person;
use tempfile::TempDir;

/// A server, and a folder through which people chat.
struct Scene {
    database: TestDatabase,
    server: Option<Server>,
    folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let database = TestDatabase::migrated(&MIGRATOR).await;
        let server = Some(Server::start(&database, &ServerOptions::default()).await);
        Self { database, server, folder: TempDir::new().unwrap() }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn url(&self) -> String {
        self.server.as_ref().unwrap().uri()
    }

    /// `kill -9`, and another one on the same port.
    async fn kill_server(&mut self) {
        let server = self.server.take().unwrap();
        let options = ServerOptions::default().text("listen", server.address().to_string());
        server.kill().await;
        self.server = Some(Server::start(&self.database, &options).await);
    }

    /// Whose pool is filled.
    async fn person(&self, user: &str) -> Person {
        let mut person = Person::start(self, user, None).await;
        person.has_a_pool().await;
        person
    }

    /// The whole names of all groups that have a log, and who was added in each by a Commit that
    /// was accepted.
    fn invited(&self) -> BTreeMap<String, Vec<String>> {
        let groups = fs::read_dir(self.folder().join("groups")).unwrap();
        let groups = groups.map(|group| group.unwrap());
        groups
            .map(|group| {
                let mut added = Vec::new();
                for position in 0.. {
                    let Ok(entry) = fs::read(group.path().join(format!("{position:08}"))) else {
                        break;
                    };
                    let entry: serde_json::Value = serde_json::from_slice(&entry).unwrap();
                    let to = entry["welcome"]["to"].as_array().into_iter().flatten();
                    added.extend(to.map(|user| user.as_str().unwrap().to_owned()));
                }
                (group.file_name().into_string().unwrap(), added)
            })
            .collect()
    }

    /// Nothing is left to settle, neither on the server nor in anyone's journal, and what was used
    /// is spent: a package for each who was added.
    async fn all_is_settled(&self, people: &[&str]) {
        until(async || self.reserved().await == 0).await;
        for user in people {
            let file = self.folder().join(format!("{user}.sqlite"));
            let store = SqliteMetadataStore::open(file).unwrap();
            until(async || store.invitations().unwrap().is_empty()).await;
        }
        assert_eq!(self.reserved().await, 0);
        let spent = "SELECT count(*) FROM event WHERE kind = 'spent'";
        let spent: i64 = sqlx::query_scalar(spent).fetch_one(&self.database.pool).await.unwrap();
        assert_eq!(spent as usize, self.invited().values().map(Vec::len).sum::<usize>());
    }

    async fn reserved(&self) -> i64 {
        let count = "SELECT (SELECT count(*) FROM package WHERE state = 'reserved')
                          + (SELECT count(*) FROM last_resort_grant WHERE state = 'reserved')";
        sqlx::query_scalar(count).fetch_one(&self.database.pool).await.unwrap()
    }
}
